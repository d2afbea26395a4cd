"""The training config of an imported model: the shipped config of its method, with the file's numbers."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def training_config(method: str, epoch: int, size: int, *, vit: bool = False) -> dict[str, Any]:
    """A config as in YAML, without ``method``, ``encoder`` and ``data``.

    The precision is float32, because most imported models are evaluated first: ``--set precision=bf16`` for training.

    Args:
        method: name of the method.
        epoch: finished epochs, which count as plain epochs.
        size: side of the training images, pixels.
        vit: whether the encoder is a vision transformer.
    """
    config = _shipped_config({"dino": "dino_vits16" if vit else "dino_resnet50"}.get(method, method))
    config |= {"out": "runs/imported", "precision": "fp32"}
    config["crop"] = {**config.get("crop", {}), "size": size}
    finished = max(epoch, 0 if config["saga"]["epochs"] else 1)  # a config needs an epoch
    config["plain"] = {**config.get("plain", {}), "epochs": finished}
    config["plain"]["warmup_epochs"] = min(config["plain"].get("warmup_epochs", 0), finished)
    for recipe in (config.get("photometric"), config.get("second_photometric")):
        if recipe and recipe.get("blur"):
            recipe["blur_kernel"] = size // 20 * 2 + 1  # an odd number, a tenth of the side
    return config


def _shipped_config(name: str) -> dict[str, Any]:
    folders = [files("saga_fast.configs").joinpath(name) for name in ("imagenet", "imagenet100")]
    path = next(path for folder in folders if (path := folder.joinpath(f"{name}.yaml")).is_file())
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config
