"""mangye16/Unsupervised_Embedding_Learning: Inv. Spread on CIFAR-10 and STL-10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft, place_resnet_and_projector
from saga_fast.importers.tensors import has_prefix

STL_POOLING = "the network pools the top left 7 x 7 of 12 x 12 positions only, which saga-fast does not support"
CIFAR_RENAMES = ((".shortcut.", ".downsample."),)


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``net`` has a last layer ``linear``."""
    return has_prefix(content.get("net"), "linear.")


def read(draft: Draft) -> None:
    """Read a CIFAR ResNet whose skip connections are called ``shortcut``.

    Raises:
        SagaError: a file of STL-10, by the name that the project's code gives it: its network has the same tensors.
    """
    if draft.path.name.startswith("stl_"):
        raise draft.error(f"of STL-10: {STL_POOLING}")
    draft.notes.append(f"taken as trained on CIFAR-10: on STL-10, {STL_POOLING}")
    tensors = draft.state_dict("net")
    projector = place_resnet_and_projector(draft, tensors, "", "linear", renames=CIFAR_RENAMES)
    tensors.finish("Inv. Spread")
    draft.method = {"name": "invspread", "projection_dim": projector.widths[-1]}
