"""zhirongw/lemniscate.pytorch: InsDis on ImageNet, and on CIFAR-10.

The original files contain the bank as a pickled module, which is refused. They can be read if they are saved again with
the module's ``state_dict()``, or nothing, in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.banks import place_bank, read_nce_params
from saga_fast.importers.draft import Draft, place_resnet_and_projector
from saga_fast.importers.invspread import CIFAR_RENAMES
from saga_fast.importers.tensors import Tensors


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file has ``lemniscate`` and ``state_dict`` or, for CIFAR-10, ``net``."""
    return "lemniscate" in content and ("state_dict" in content or "net" in content)


def read(draft: Draft) -> None:
    """Read a ResNet with ``fc`` (CIFAR-10: ``linear``), and ``memory`` and ``params`` of ``lemniscate``."""
    cifar = "net" in draft
    tensors = draft.state_dict("net" if cifar else "state_dict")
    projector = place_resnet_and_projector(
        draft, tensors, "", "linear" if cifar else "fc", renames=CIFAR_RENAMES if cifar else ()
    )
    tensors.finish("lemniscate")
    fields: dict[str, Any] = {"loss": "nce", "negatives": 4096}
    rows, constant = None, -1.0
    if draft.holds("lemniscate"):
        memory = draft.state_dict("lemniscate")
        if memory.shape("params") == (2,):
            fields = _full_softmax(draft, memory)
        else:
            bank_fields, [constant] = read_nce_params(draft, memory, 1)
            fields |= bank_fields
        rows = draft.take_memory(memory, "memory")
        memory.finish("lemniscate")
    z = constant if fields["loss"] == "nce" else None
    place_bank(draft, rows, "bank", projector.widths[-1], z=z)
    draft.method = {"name": "insdis", "projection_dim": projector.widths[-1], **fields}


def _full_softmax(draft: Draft, memory: Tensors) -> dict[str, Any]:
    """The fields of a file of ``--nce-k 0``, whose ``params`` are temperature and momentum."""
    params = memory.pop("params")
    assert params is not None
    temperature, momentum = params.tensor.double().tolist()
    draft.notes.append("trained with the softmax over all rows; training continues with rows that are drawn")
    return {"loss": "softmax", "temperature": round(temperature, 6), "bank_momentum": round(momentum, 6)}
