"""zhirongw/lemniscate.pytorch: InsDis on ImageNet, and on CIFAR-10.

Its files hold the bank as a pickled module, which is refused; saved again with the module's ``state_dict()`` in its
place (or nothing), they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.banks import nce_numbers, place_bank
from saga_fast.importers.draft import Draft, resnet_and_head
from saga_fast.importers.invspread import CIFAR_RENAMES


def matches(content: Mapping[str, Any]) -> bool:
    """``lemniscate`` beside ``state_dict`` or, for CIFAR-10, ``net``."""
    return "lemniscate" in content and ("state_dict" in content or "net" in content)


def read(draft: Draft) -> None:
    """A ResNet with ``fc``, or ``linear`` for CIFAR-10; ``lemniscate`` has ``memory`` and ``params``."""
    cifar = "net" in draft
    tensors = draft.tensors("net" if cifar else "state_dict")
    projector = resnet_and_head(draft, tensors, "", "linear" if cifar else "fc", renames=CIFAR_RENAMES if cifar else ())
    tensors.finish("lemniscate")
    fields: dict[str, Any] = {"negatives": 4096}
    rows, constants = None, [-1.0]
    if draft.use("lemniscate"):
        memory = draft.tensors("lemniscate")
        found, constants = nce_numbers(draft, memory, 1)
        fields |= found
        rows = draft.memory(memory, "memory")
        memory.finish("lemniscate")
    place_bank(draft, rows, "bank", projector.widths[-1], z=constants[0])
    draft.method = {"name": "insdis", "loss": "nce", "projection_dim": projector.widths[-1], **fields}
