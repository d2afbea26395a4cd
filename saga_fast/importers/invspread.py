"""mangye16/Unsupervised_Embedding_Learning: Inv. Spread on CIFAR-10 and STL-10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft, resnet_and_head
from saga_fast.importers.tensors import begins

CIFAR_RENAMES = ((".shortcut.", ".downsample."),)


def matches(content: Mapping[str, Any]) -> bool:
    """``net`` with a last layer ``linear``."""
    return begins(content.get("net"), "linear.")


def read(draft: Draft) -> None:
    """A CIFAR ResNet whose skip connections are called ``shortcut``."""
    tensors = draft.tensors("net")
    projector = resnet_and_head(draft, tensors, "", "linear", renames=CIFAR_RENAMES)
    tensors.finish("Inv. Spread")
    draft.method = {"name": "invspread", "projection_dim": projector.widths[-1]}
