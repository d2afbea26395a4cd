"""How to go on training what was imported: the augmentation that each method's authors used, and 60 more epochs."""

from __future__ import annotations

from typing import Any

_JITTER = {"flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
_V1 = {"scale": [0.2, 1.0]}, {**_JITTER, "hue": 0.4, "grayscale": 0.2, "grayscale_first": True}
_BANK = {"scale": [0.08, 1.0]}, {**_JITTER, "hue": 0.4, "grayscale": 0.2}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "insdis": _BANK,  # PyContrast
    "pirl": _BANK,
    "cmc": ({"scale": [0.08, 1.0]}, {**_JITTER, "hue": 0.1}),
    "moco": _V1,  # facebookresearch/moco
    "mocov2": ({"scale": [0.2, 1.0]}, {**_JITTER, "hue": 0.1, "jitter": 0.8, "grayscale": 0.2, "blur": 0.5}),
    "simclr": (
        {"scale": [0.08, 1.0]},
        {
            "flip": 0.5,
            "brightness": 0.8,
            "contrast": 0.8,
            "saturation": 0.8,
            "hue": 0.2,
            "jitter": 0.8,
            "grayscale": 0.2,
            "blur": 0.5,
        },
    ),
    "invspread": ({"scale": [0.2, 1.0]}, {**_JITTER, "hue": 0.4, "grayscale": 0.2}),
    "supervised": ({}, {"flip": 0.5}),
}
"""Crops and photometric augmentation."""


def training_values(method: str, epoch: int, size: int) -> dict[str, Any]:
    """A config's values but for method, encoder and images.

    Table 1 of the paper trains 60 epochs more. 3e-4 is the last rate of the step schedules that InsDis, PIRL, MoCo and
    CMC were trained with; the paper names none.
    """
    crop, photometric = RECIPES.get(method, ({}, {}))
    blur = {"blur_kernel": max(1, size // 20 * 2 + 1)} if "blur" in photometric else {}
    return {
        "out": "runs/imported",
        "crop": {"size": size, **crop},
        "photometric": {**photometric, **blur},
        "plain": {"epochs": max(epoch, 0), "lr": 0.03},
        "saga": {"epochs": 60, "lr": 0.0003},
    }
