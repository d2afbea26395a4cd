"""SimCLR of sthalles/SimCLR and of Spijkervet/SimCLR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import has_prefix


def matches_sthalles(content: Mapping[str, Any]) -> bool:
    """Whether ``state_dict`` has a projector as the backbone's last layer."""
    state = content.get("state_dict")
    return has_prefix(state, "backbone.fc.") and not has_prefix(state, "projector.", "projection_head.")


def read_sthalles(draft: Draft) -> None:
    """Read ``backbone.*`` with projector ``backbone.fc``; STL-10 at 96 px, images not normalised."""
    tensors = draft.state_dict("state_dict")
    head = tensors.take("backbone.fc.")
    head.need("2.weight")
    fields = draft.place_mlp(head)
    draft.place_resnet(tensors.take("backbone."))
    tensors.finish("sthalles/SimCLR")
    draft.encoder |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    draft.size = 96
    draft.input_origin = "STL-10's size, not normalised, as in the project's code"
    draft.method = {"name": "simclr", "temperature": 0.07, **fields}


def matches_spijkervet(content: Mapping[str, Any]) -> bool:
    """Whether the file is a state dict with ``encoder.*`` and ``projector.*``."""
    bare = all(isinstance(value, torch.Tensor) for value in content.values())
    return bare and has_prefix(content, "encoder.") and has_prefix(content, "projector.")


def read_spijkervet(draft: Draft) -> None:
    """Read a ResNet and a projector without biases; images were not normalised."""
    tensors = draft.state_dict()
    head = tensors.take("projector.")
    for name in ("0.weight", "2.weight"):
        head.need(name)
    fields = draft.place_mlp(head, bias=False)
    draft.place_resnet(tensors.take("encoder."))
    tensors.finish("Spijkervet/SimCLR")
    draft.encoder |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    draft.size = 224
    draft.input_origin = "ImageNet's size, not normalised, as in the project's code"
    draft.method = {"name": "simclr", "temperature": 0.5, **fields}
