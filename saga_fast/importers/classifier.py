"""Classifiers of torchvision and timm, vision transformers, and encoders without a last layer.

A classifier becomes method ``supervised``, whose attention is that of the predicted class. With
``--set method.name=simclr`` or another method, the last layer becomes its projector; if there is no last layer, the
projector starts fresh.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import timm
import torch
import torchvision

from saga_fast.importers.draft import COPIES, Draft
from saga_fast.importers.moco import moco_config
from saga_fast.importers.tensors import Part, Tensors, has_prefix

FRESH = {
    "queue": "queue: random",
    "bank.": "bank: random rows",
    "patch_projector.": "patch projector: random",
    "jigsaw_projector.": "jigsaw projector: random",
    "predictor.": "predictor: random",
    "prototypes.": "prototypes: random",
    "centre": "centre: zero",
}


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file, its ``state_dict`` or its ``model`` has the tensors of a ResNet."""
    return any(has_prefix(state, "conv1.", "layer1.0.") for state in _states(content))


def matches_timm(content: Mapping[str, Any]) -> bool:
    """Whether the file has tensors, and a name of timm in ``arch``."""
    return bool(_states(content)) and isinstance(content.get("arch"), str) and timm.is_model(content["arch"])


def matches_vit(content: Mapping[str, Any]) -> bool:
    """Whether the file, its ``state_dict`` or its ``model`` has the tensors of a vision transformer."""
    return any(has_prefix(state, "patch_embed.proj.") and has_prefix(state, "cls_token") for state in _states(content))


def _states(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The state dicts of a file: the file itself, or ``state_dict`` and ``model``."""
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return [content]
    return [content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)]


def read(draft: Draft) -> None:
    """Read ``conv1``, ``layer1`` ... and ``fc``, if there is one. The input is ImageNet's, or timm's for ``arch``."""
    tensors = _open(draft)
    head = tensors.take("fc.")
    draft.place_resnet(tensors.take())
    if draft.encoder["stem"] == "imagenet":
        draft.input_origin = "ImageNet's, as torchvision's and most of timm's ResNets"
    name = draft.entry("arch")
    if isinstance(name, str) and timm.is_model(name) and name not in torchvision.models.list_models():
        _read_input(draft, name)
    _place_head(draft, head)


def read_timm(draft: Draft) -> None:
    """Read a network of timm; its name in timm determines the name of its last layer."""
    name = draft.requested_encoder or draft.entry("arch")
    if not isinstance(name, str) or not timm.is_model(name):
        raise draft.error("unknown network: give its name in timm, for example --set encoder.name=convnext_tiny")
    tensors = _open(draft)
    draft.encoder = {"name": name}
    _read_input(draft, name)
    pretrained = timm.get_pretrained_cfg(name)
    head = tensors.take(f"{pretrained.classifier if pretrained else 'fc'}.")
    draft.place(tensors.take(), "encoder.backbone")
    _place_head(draft, head)


def read_vit(draft: Draft) -> None:
    """Read the names of timm, DINO and DINOv2, and ``head``, if there is one. The input is ImageNet's."""
    tensors = _open(draft)
    head = tensors.take("head.")
    draft.place_backbone(tensors.take())
    draft.input_origin = "ImageNet's, as in DINO, DINOv2 and DeiT"
    _place_head(draft, head)


def _read_input(draft: Draft, name: str) -> None:
    """Take mean, standard deviation, size and crop of the input from timm's config of a network, by name and tag.

    The options that timm's training script saves in ``args`` come first.
    """
    pretrained = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = asdict(pretrained) if pretrained else {}
    options = draft.options("args") if isinstance(draft.entry("args"), Namespace) else {}
    config |= {key: options[key] for key in ("mean", "std") if _is_numbers(options.get(key), 3)}
    config |= {key: options[key] for key in ("crop_pct", "img_size") if _is_numbers([options.get(key)], 1)}
    side = int(config.get("img_size") or config.get("input_size", (3, 224, 224))[-1])
    if "mean" not in config:
        draft.input_origin = f"ImageNet's, assumed: timm has no config of {name}"
        return
    draft.size = side
    draft.encoder |= {key: tuple(config[key]) for key in ("mean", "std")}
    tag = getattr(pretrained, "tag", None) or "default"
    draft.input_origin = f"timm's of {name} (tag {tag})"
    if config.get("crop_pct"):
        draft.input_origin += f", evaluated there on the centre crop of {config['crop_pct']:g}"


def _is_numbers(value: Any, count: int) -> bool:
    is_sequence = isinstance(value, list | tuple) and len(value) == count
    return is_sequence and all(type(item) in (int, float) and 0.0 <= item <= 1e4 for item in value)


def _open(draft: Draft) -> Tensors:
    key = next((key for key in ("state_dict", "model") if key in draft), None)
    return draft.state_dict(key) if key else draft.state_dict()


def _place_head(draft: Draft, head: Part) -> None:
    """Put the last layer as the projector, or a fresh projector, and set the method's config."""
    name = draft.requested_method or "supervised"
    draft.fresh |= FRESH
    draft.method = {"name": name, **(_head_config(draft, head, name) if head else _fresh_head_config(draft, name))}
    if name in COPIES:
        draft.copy_encoder(name)
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
    if name in ("byol", "dino"):
        draft.dropped.append(f"classifier ({len(head)} tensors)")
        return _fresh_head_config(draft, name)
    if name == "supervised" and "0.weight" in head:
        raise draft.error(
            f"{head.prefix} is a projector, not a classifier: name the method, --set method.name=simclr or mocov2"
        )
    config = draft.linear_config(draft.place_projector(head), head, name)
    return {"num_classes": config["projection_dim"]} if name == "supervised" else config
