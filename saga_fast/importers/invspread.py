"""mangye16/Unsupervised_Embedding_Learning: Inv. Spread on CIFAR-10 and STL-10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft, place_resnet_and_projector
from saga_fast.importers.tensors import has_prefix

CIFAR_RENAMES = ((".shortcut.", ".downsample."),)


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``net`` has a last layer ``linear``."""
    return has_prefix(content.get("net"), "linear.")


def read(draft: Draft) -> None:
    """Read a CIFAR ResNet whose skip connections are called ``shortcut``."""
    tensors = draft.state_dict("net")
    projector = place_resnet_and_projector(draft, tensors, "", "linear", renames=CIFAR_RENAMES)
    tensors.finish("Inv. Spread")
    draft.method = {"name": "invspread", "projection_dim": projector.widths[-1]}
