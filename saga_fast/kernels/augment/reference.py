"""The oracle of augment: plain NumPy float64, one view at a time."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saga_fast.kernels._dispatch import Array, NDArray, convert_like, to_numpy
from saga_fast.kernels.sample_photometrics.fields import (
    BLUR_RADIUS,
    BLUR_SIGMA,
    BRIGHTNESS,
    CONTRAST,
    FLIP,
    GRAYSCALE,
    HUE,
    ORDER,
    SATURATION,
    SOLARIZE,
)

GRAY = np.array([0.2989, 0.587, 0.114])  # torchvision's weights (ITU-R 601-2)


def blend(image: NDArray, pivot: NDArray | float, factor: float) -> NDArray:
    """Return factor * image + (1 - factor) * pivot, clamped to [0, 1]."""
    return np.clip(factor * image + (1.0 - factor) * pivot, 0.0, 1.0)


def shift_hue(image: NDArray, turns: float) -> NDArray:
    """Rotate the HSV hue of each pixel with the standard library's colorsys."""
    flat = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
    return np.array([colorsys.hsv_to_rgb((h + turns) % 1.0, s, v) for h, s, v in flat]).reshape(image.shape)


def jitter(image: NDArray, p: NDArray) -> NDArray:
    """Apply the four steps of ColorJitter in the order that ``p`` holds."""
    for step in p[ORDER : ORDER + 4].astype(int):
        if step == 0:
            image = blend(image, 0.0, p[BRIGHTNESS])
        elif step == 1:
            image = blend(image, float((image @ GRAY).mean()), p[CONTRAST])
        elif step == 2:
            image = blend(image, (image @ GRAY)[..., None], p[SATURATION])
        else:
            image = shift_hue(image, p[HUE])
    return image


def blur(image: NDArray, sigma: float, radius: int) -> NDArray:
    """Blur with a separable Gaussian of 2 * radius + 1 taps; borders reflected without repeating the edge."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(image, pad, mode="reflect")
        image = sum(w * np.take(padded, np.arange(k, k + image.shape[axis]), axis) for k, w in enumerate(taps))
    return image


def augment_reference(
    views: Array,
    photometrics: Array | None,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    dtype: torch.dtype,
) -> Any:
    """See :func:`saga_fast.kernels.augment`."""
    views_np = to_numpy(views)
    out = np.empty((*views_np.shape[:2], 3, *views_np.shape[2:4]), np.float32)
    for n, v in np.ndindex(*views_np.shape[:2]):
        image = views_np[n, v] / 255.0
        if photometrics is not None:
            p = to_numpy(photometrics)[n, v].astype(np.float64)
            image = image[:, ::-1] if p[FLIP] else image
            image = np.repeat((image @ GRAY)[..., None], 3, -1) if p[GRAYSCALE] == 2.0 else image
            image = jitter(image, p)
            image = np.repeat((image @ GRAY)[..., None], 3, -1) if p[GRAYSCALE] == 1.0 else image
            image = blur(image, p[BLUR_SIGMA], int(p[BLUR_RADIUS])) if p[BLUR_SIGMA] > 0.0 else image
            image = np.where(image >= p[SOLARIZE], 1.0 - image, image)
        out[n, v] = ((image - np.asarray(mean)) / np.asarray(std)).transpose(2, 0, 1)
    if not isinstance(views, torch.Tensor):
        return out
    result = convert_like(out, views).to(dtype)
    if channels_last:
        result = result.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, views.shape[:2])
    return result
