"""SimCLR of sthalles/SimCLR and of Spijkervet/SimCLR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saga_fast.importers.draft import Draft


def matches_sthalles(content: Mapping[str, Any]) -> bool:
    """``state_dict`` with a projector that is the backbone's last layer."""
    state = content.get("state_dict")
    return isinstance(state, Mapping) and bool({"backbone.fc.0.weight", "module.backbone.fc.0.weight"} & set(state))


def read_sthalles(draft: Draft) -> None:
    """``backbone.*`` with ``backbone.fc.0/.2``. Images were not normalised, and those of STL-10 are 96 px."""
    tensors = draft.tensors("state_dict")
    fields = draft.place_mlp(tensors.take("backbone.fc."))
    draft.place_resnet(tensors.take("backbone."))
    tensors.finish("sthalles/SimCLR")
    draft.encoder |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    draft.size = 96
    draft.method = {"name": "simclr", "temperature": 0.07, **fields}


def matches_spijkervet(content: Mapping[str, Any]) -> bool:
    """Tensors at the top, ``encoder.*`` and ``projector.*``."""
    names = {name.removeprefix("module.") for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {"encoder.conv1.weight", "projector.0.weight"} <= names


def read_spijkervet(draft: Draft) -> None:
    """A ResNet and a projector without biases. Images were not normalised."""
    tensors = draft.tensors()
    fields = draft.place_mlp(tensors.take("projector."), bias=False)
    draft.place_resnet(tensors.take("encoder."))
    tensors.finish("Spijkervet/SimCLR")
    draft.encoder |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    draft.size = 224
    draft.method = {"name": "simclr", "temperature": 0.5, **fields}
