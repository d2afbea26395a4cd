"""The recipe of a method's photometric augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PhotometricRecipe:
    """Photometric augmentation of a method, with torchvision's parameters. All probabilities are in [0, 1].

    The order is flip, greyscale (if ``grayscale_first``), jitter, greyscale, blur, solarize. The defaults leave an
    image unchanged.
    """

    flip: float = 0.0
    """Probability of a horizontal flip."""
    brightness: float = 0.0
    """The jitter factor is drawn from [max(0, 1 - brightness), 1 + brightness]; likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """The hue shift is drawn from [-hue, hue] turns, hue <= 0.5."""
    jitter: float = 1.0
    """Probability that the jitter is applied."""
    grayscale: float = 0.0
    """Probability of greyscale."""
    grayscale_first: bool = False
    """Greyscale before the jitter (MoCo v1, InsDis) instead of after it (SimCLR, MoCo v2)."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the view."""
    blur_kernel: int = 23
    """Side of the blur kernel in pixels, odd: 23 for views of 224, a tenth of the view's side (SimCLR)."""
    solarize: float = 0.0
    """Probability of solarize: values >= solarize_threshold become 1 - value."""
    solarize_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], got {self.hue}")
        if not 0.0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ValueError(f"blur_sigma must be (low, high) with 0 < low <= high < inf, got {self.blur_sigma}")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd and positive, got {self.blur_kernel}")
