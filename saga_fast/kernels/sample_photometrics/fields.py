"""Columns of the photometric parameter array, and the conversion of a recipe to an array for kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels.sample_photometrics.recipe import PhotometricRecipe

PHOTOMETRIC_FIELDS = (
    "flip",  # 0 or 1
    "order_0",  # order of the four jitter steps: 0 brightness, 1 contrast, 2 saturation, 3 hue
    "order_1",
    "order_2",
    "order_3",
    "brightness",  # factors; 1 leaves the image unchanged
    "contrast",
    "saturation",
    "hue",  # turns; 0 leaves the image unchanged
    "grayscale",  # 0 none, 1 after the jitter, 2 before it
    "blur_sigma",  # pixels; 0 is no blur
    "blur_radius",  # pixels; the kernel's side is 2 * radius + 1
    "solarize",  # threshold in [0, 1]; 2 is no solarize
)
(FLIP, ORDER, _, _, _, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, BLUR_SIGMA, BLUR_RADIUS, SOLARIZE) = range(13)


def check_blur(photometrics: NDArray, side: int) -> None:
    """Raise ``ValueError`` for parameters (..., P) with a blur radius of ``side`` pixels or more.

    The border of a view is reflected only once, which gives ``side`` - 1 pixels.
    """
    radius = photometrics[..., BLUR_RADIUS][photometrics[..., BLUR_SIGMA] > 0.0]
    if (radius >= side).any():
        raise ValueError(f"blur_radius must be less than the view side {side} px, got {radius.max():.0f}")


def recipes_to_array(recipes: Sequence[PhotometricRecipe]) -> NDArray:
    """Return the recipes of V views as (V, 17) float64, each in the order that the Numba sampler reads."""
    return np.array([_numbers(recipe) for recipe in recipes])


def _numbers(recipe: PhotometricRecipe) -> list[float]:
    return [
        recipe.flip,
        recipe.jitter,
        recipe.grayscale,
        recipe.blur,
        max(0.0, 1.0 - recipe.brightness),
        1.0 + recipe.brightness,
        max(0.0, 1.0 - recipe.contrast),
        1.0 + recipe.contrast,
        max(0.0, 1.0 - recipe.saturation),
        1.0 + recipe.saturation,
        recipe.hue,
        2.0 if recipe.grayscale_first else 1.0,
        recipe.blur_sigma[0],
        recipe.blur_sigma[1],
        recipe.blur_kernel // 2,
        recipe.solarize,
        recipe.solarize_threshold,
    ]
