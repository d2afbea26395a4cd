"""How to go on training what was imported: as the shipped config of its method does."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def training_values(method: str, epoch: int, size: int) -> dict[str, Any]:
    """A config's values, for images of ``size`` px and after ``epoch`` plain epochs; method, encoder and data aside.

    float32, because a network is first of all looked at: ``--set precision=bf16`` for training.
    """
    values = _shipped(method)
    values |= {"out": "runs/imported", "precision": "fp32"}
    values["crop"] = {**values.get("crop", {}), "size": size}
    values["plain"] = {**values.get("plain", {}), "epochs": max(epoch, 0)}
    values["plain"]["warmup_epochs"] = min(values["plain"].get("warmup_epochs", 0), max(epoch, 0))
    if values.get("photometric", {}).get("blur"):
        values["photometric"]["blur_kernel"] = size // 20 * 2 + 1  # a tenth of the side, odd
    return values


def _shipped(method: str) -> dict[str, Any]:
    for folder in ("imagenet", "imagenet100"):
        path = files("saga_fast.configs").joinpath(folder, f"{method}.yaml")
        if path.is_file():
            values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            return values
    return {"saga": {"epochs": 1}}  # a classifier, which is not trained
