"""Bare networks: classifiers of torchvision and timm, and encoders without a last layer.

A classifier becomes method ``supervised``, whose attention is that of its predicted class. Another method may be asked
for (``--set method.name=simclr``): the last layer is then its projector; where there is none, the projector is fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch

from saga_fast.errors import SagaError
from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_values
from saga_fast.importers.tensors import Part, Tensors, begins

FRESH = {
    "queue": "queue: random",
    "bank.": "bank: random rows",
    "patch_projector.": "patch projector: random",
    "jigsaw_projector.": "jigsaw projector: random",
}


def matches(content: Mapping[str, Any]) -> bool:
    """A ResNet's tensors at the top or in ``state_dict`` or ``model``."""
    return any(begins(state, "conv1.", "layer1.0.") for state in _states(content))


def matches_timm(content: Mapping[str, Any]) -> bool:
    """Tensors of another network whose timm name is in ``arch``."""
    return bool(_states(content)) and isinstance(content.get("arch"), str) and timm.is_model(content["arch"])


def _states(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = [content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)]
    bare = bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())
    return [content] if bare else found


def read(draft: Draft) -> None:
    """``conv1``, ``layer1`` ... and perhaps ``fc``."""
    tensors = _open(draft)
    head = tensors.take("fc.")
    draft.place_resnet(tensors.take())
    _place_head(draft, head)


def read_timm(draft: Draft) -> None:
    """A network of timm by its name; timm knows the name of its last layer."""
    name = draft.wanted_encoder or draft.use("arch")
    if not isinstance(name, str) or not timm.is_model(name):
        raise draft.fail("which network? Give its timm name, --set encoder.name=convnext_tiny")
    tensors = _open(draft)
    draft.encoder = {"name": name}
    known = timm.get_pretrained_cfg(name)
    head = tensors.take(f"{known.classifier if known else 'fc'}.")
    draft.place(tensors.take(), "encoder.backbone")
    _place_head(draft, head)


def _open(draft: Draft) -> Tensors:
    key = next((key for key in ("state_dict", "model") if key in draft), None)
    return draft.tensors(key) if key else draft.tensors()


def _place_head(draft: Draft, head: Part) -> None:
    name = draft.wanted or "supervised"
    draft.fresh |= FRESH
    if not head:
        if name == "supervised":
            raise draft.fail(
                "has no classifier: name the method to train it with, --set method.name=simclr;"
                " its projector then starts fresh"
            )
        draft.method = {"name": name}
        draft.fresh["projector."] = "projector: random"
    elif name == "supervised":
        if "0.weight" in head:
            raise draft.fail(
                f"{head.prefix} is a projector, no classifier: name the method, --set method.name=simclr or mocov2"
            )
        classes = draft.linear(draft.place_projector(head), head, name)["projection_dim"]
        draft.method = {"name": name, "num_classes": classes}
    elif name == "simclr":
        draft.method = {"name": name, **draft.place_mlp(head)}
    elif name in ("moco", "mocov2"):
        draft.method = moco_values(draft, draft.place_projector(head))
        if draft.method["name"] != name:
            raise draft.fail(f"{head.prefix} fits method.name={draft.method['name']}, not {name}")
    else:
        draft.method = {"name": name, **draft.linear(draft.place_projector(head), head, name)}
    if name in ("moco", "mocov2"):
        draft.copy_to_keys()
    if name == "cmc":
        raise SagaError(f"{draft.path}: CMC needs two encoders, for 1 and 2 channels")
