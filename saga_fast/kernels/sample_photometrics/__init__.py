"""sample_photometrics: the random parameters of flip, colour jitter, greyscale, blur and solarize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from saga_fast.kernels._dispatch import AnyArray, choose, like, to_numpy
from saga_fast.kernels.philox import check_key
from saga_fast.kernels.sample_photometrics._numba import sample_photometrics_numba
from saga_fast.kernels.sample_photometrics.fields import PHOTOMETRIC_FIELDS
from saga_fast.kernels.sample_photometrics.reference import sample_photometrics_reference

IMPLEMENTATIONS = {"reference": sample_photometrics_reference, "numba": sample_photometrics_numba}

__all__ = ["PHOTOMETRIC_FIELDS", "PhotometricRecipe", "sample_photometrics"]


@dataclass(frozen=True, kw_only=True)
class PhotometricRecipe:
    """The photometric augmentation of a method, in torchvision's terms. All probabilities are in [0, 1].

    The order is flip, greyscale (with ``grayscale_first``), jitter, greyscale, blur, solarize. The defaults
    change nothing.
    """

    flip: float = 0.0
    """Probability of a horizontal flip."""
    brightness: float = 0.0
    """Jitter factor drawn from [max(0, 1 - brightness), 1 + brightness]; contrast and saturation likewise."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Hue shift drawn from [-hue, hue] turns, hue <= 0.5."""
    jitter: float = 1.0
    """Probability that the jitter is applied."""
    grayscale: float = 0.0
    """Probability of greyscale."""
    grayscale_first: bool = False
    """Greyscale before the jitter (MoCo v1, InsDis) instead of after it (SimCLR, MoCo v2)."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, pixels of the view."""
    blur_kernel: int = 23
    """Side of the blur's kernel, odd, pixels: 23 at 224, a tenth of the view's side (SimCLR)."""
    solarize: float = 0.0
    """Probability of solarize: values >= solarize_threshold become 1 - value."""
    solarize_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "solarize_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, got {getattr(self, name)}")
        if not 0.0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], got {self.hue}")
        if not 0.0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ValueError(f"blur_sigma must be an increasing pair of positive numbers, got {self.blur_sigma}")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd and positive, got {self.blur_kernel}")


def sample_photometrics(
    recipe: PhotometricRecipe, seed: int, epoch: int, indices: AnyArray, num_views: int, *, impl: str | None = None
) -> AnyArray:
    """Draw the photometric parameters of ``num_views`` views of every image.

    Args:
        recipe: probabilities and ranges.
        seed, epoch, indices: key the draws together with the view's number; indices (B,) int64.
        num_views: views per image, 1 to 256.
        impl: ``None`` or ``"numba"`` (CPU), or ``"reference"``.

    Returns:
        (B, num_views, P) float32; the P columns are ``PHOTOMETRIC_FIELDS``. On the device of ``indices``.

    Raises:
        ValueError: indices that are not (B,), num_views, seed or epoch out of range, or an unknown impl.
    """
    if indices.ndim != 1:
        raise ValueError(f"indices must be (B,), got {tuple(indices.shape)}")
    if not 1 <= num_views <= 256:
        raise ValueError(f"num_views must be in 1 to 256, got {num_views}")
    check_key(seed, epoch)
    indices_np: Any = to_numpy(indices, "int64")
    # 13 numbers a view: drawn on the CPU for GPU tensors too, and uploaded.
    sampler = choose(IMPLEMENTATIONS, impl, indices_np)
    return like(sampler(recipe, seed, epoch, indices_np, num_views), indices)  # type: ignore[no-any-return]
