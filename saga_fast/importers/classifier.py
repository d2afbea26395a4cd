"""Classifiers of torchvision and timm, and encoders without a last layer.

A classifier becomes method ``supervised``, whose attention is that of the predicted class. With
``--set method.name=simclr`` or another method, the last layer becomes its projector; if there is no last layer, the
projector starts fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_config
from saga_fast.importers.tensors import Part, Tensors, has_prefix

FRESH = {
    "queue": "queue: random",
    "bank.": "bank: random rows",
    "patch_projector.": "patch projector: random",
    "jigsaw_projector.": "jigsaw projector: random",
}


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file, its ``state_dict`` or its ``model`` has the tensors of a ResNet."""
    return any(has_prefix(state, "conv1.", "layer1.0.") for state in _states(content))


def matches_timm(content: Mapping[str, Any]) -> bool:
    """Whether the file has tensors, and a name of timm in ``arch``."""
    return bool(_states(content)) and isinstance(content.get("arch"), str) and timm.is_model(content["arch"])


def _states(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The state dicts of a file: the file itself, or ``state_dict`` and ``model``."""
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return [content]
    return [content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)]


def read(draft: Draft) -> None:
    """Read ``conv1``, ``layer1`` ... and ``fc``, if there is one."""
    tensors = _open(draft)
    head = tensors.take("fc.")
    draft.place_resnet(tensors.take())
    _place_head(draft, head)


def read_timm(draft: Draft) -> None:
    """Read a network of timm; its name in timm determines the name of its last layer."""
    name = draft.requested_encoder or draft.entry("arch")
    if not isinstance(name, str) or not timm.is_model(name):
        raise draft.error("unknown network: give its name in timm, for example --set encoder.name=convnext_tiny")
    tensors = _open(draft)
    draft.encoder = {"name": name}
    pretrained = timm.get_pretrained_cfg(name)
    head = tensors.take(f"{pretrained.classifier if pretrained else 'fc'}.")
    draft.place(tensors.take(), "encoder.backbone")
    _place_head(draft, head)


def _open(draft: Draft) -> Tensors:
    key = next((key for key in ("state_dict", "model") if key in draft), None)
    return draft.state_dict(key) if key else draft.state_dict()


def _place_head(draft: Draft, head: Part) -> None:
    """Put the last layer as the projector, or a fresh projector, and set the method's config."""
    name = draft.requested_method or "supervised"
    draft.fresh |= FRESH
    draft.method = {"name": name, **(_head_config(draft, head, name) if head else _fresh_head_config(draft, name))}
    if name in ("moco", "mocov2"):
        draft.copy_to_keys()
    if name == "cmc":
        raise draft.error("CMC needs two encoders, for 1 and 2 channels")


def _fresh_head_config(draft: Draft, name: str) -> dict[str, Any]:
    if name == "supervised":
        raise draft.error(
            "has no classifier: name the method of training, for example --set method.name=simclr;"
            " its projector starts fresh"
        )
    draft.fresh["projector."] = "projector: random"
    return {}


def _head_config(draft: Draft, head: Part, name: str) -> dict[str, Any]:
    if name == "simclr":
        return draft.place_mlp(head)
    if name in ("moco", "mocov2"):
        config = moco_config(draft, draft.place_projector(head))
        if config["name"] != name:
            raise draft.error(f"{head.prefix} fits method.name={config['name']}, not {name}")
        return config
    if name == "supervised" and "0.weight" in head:
        raise draft.error(
            f"{head.prefix} is a projector, not a classifier: name the method, --set method.name=simclr or mocov2"
        )
    config = draft.linear_config(draft.place_projector(head), head, name)
    return {"num_classes": config["projection_dim"]} if name == "supervised" else config
