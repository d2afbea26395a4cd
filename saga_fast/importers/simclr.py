"""SimCLR of sthalles/SimCLR and of Spijkervet/SimCLR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import begins


def matches_sthalles(content: Mapping[str, Any]) -> bool:
    """``state_dict`` with a projector that is the backbone's last layer."""
    state = content.get("state_dict")
    return begins(state, "backbone.fc.") and not begins(state, "projector.", "projection_head.")


def read_sthalles(draft: Draft) -> None:
    """``backbone.*`` with ``backbone.fc.0/.2``. Images were not normalised, and those of STL-10 are 96 px."""
    tensors = draft.tensors("state_dict")
    head = tensors.take("backbone.fc.")
    head.need("2.weight")
    fields = draft.place_mlp(head)
    draft.place_resnet(tensors.take("backbone."))
    tensors.finish("sthalles/SimCLR")
    draft.encoder |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    draft.size = 96
    draft.method = {"name": "simclr", "temperature": 0.07, **fields}


def matches_spijkervet(content: Mapping[str, Any]) -> bool:
    """Tensors at the top, ``encoder.*`` and ``projector.*``."""
    bare = all(isinstance(value, torch.Tensor) for value in content.values())
    return bare and begins(content, "encoder.") and begins(content, "projector.")


def read_spijkervet(draft: Draft) -> None:
    """A ResNet and a projector without biases. Images were not normalised."""
    tensors = draft.tensors()
    head = tensors.take("projector.")
    for name in ("0.weight", "2.weight"):
        head.need(name)
    fields = draft.place_mlp(head, bias=False)
    draft.place_resnet(tensors.take("encoder."))
    tensors.finish("Spijkervet/SimCLR")
    draft.encoder |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    draft.size = 224
    draft.method = {"name": "simclr", "temperature": 0.5, **fields}
