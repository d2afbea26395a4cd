"""rgb_to_lab and rgb_to_ydbdr: conversion to the colour spaces that CMC splits into two views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from saga_fast.kernels._dispatch import AnyArray, Array, choose
from saga_fast.kernels.rgb_to_lab._torch import rgb_to_lab_torch, rgb_to_ydbdr_torch
from saga_fast.kernels.rgb_to_lab.reference import rgb_to_lab_reference, rgb_to_ydbdr_reference

LAB: dict[str, Callable[..., Any]] = {"reference": rgb_to_lab_reference, "torch": rgb_to_lab_torch}
YDBDR: dict[str, Callable[..., Any]] = {"reference": rgb_to_ydbdr_reference, "torch": rgb_to_ydbdr_torch}
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def _check(images: Array, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ``ValueError`` for arguments that :func:`rgb_to_lab` refuses."""
    if images.ndim != 4 or images.shape[1] != 3 or "float32" not in str(images.dtype):
        raise ValueError(f"images must be float32 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0.0:
        raise ValueError(f"mean and std must be three numbers each, std > 0, got {list(mean)} and {list(std)}")


def rgb_to_lab(
    images: AnyArray, mean: Sequence[float] = ZEROS, std: Sequence[float] = ONES, *, impl: str | None = None
) -> AnyArray:
    """Convert sRGB to CIE L*a*b* (D65, 2 degrees) as scikit-image's ``rgb2lab``, then (Lab - mean) / std.

    Linear light is ((v + 0.055) / 1.055)^2.4 where v > 0.04045, else v / 12.92. X, Y and Z are divided by the white
    point; f(t) = cbrt(t) where t > 0.008856, else 7.787 t + 16 / 116. Then L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)) and
    b = 200 (f(Y) - f(Z)).

    Args:
        images: (B, 3, H, W) float32 in [0, 1], any strides.
        mean, std: per channel.
        impl: ``None`` or ``"torch"`` (any device), or ``"reference"`` (float64 NumPy).

    Returns:
        (B, 3, H, W) float32, contiguous. No gradient.

    Raises:
        ValueError: invalid shape or dtype, a std that is not positive, or an unknown impl.
    """
    _check(images, mean, std)
    lab: AnyArray = choose(LAB, impl, images)(images, mean, std)
    return lab


def rgb_to_ydbdr(
    images: AnyArray, mean: Sequence[float] = ZEROS, std: Sequence[float] = ONES, *, impl: str | None = None
) -> AnyArray:
    """Convert RGB to YDbDr (SECAM) as scikit-image's ``rgb2ydbdr``, then (YDbDr - mean) / std.

    Arguments and errors as for :func:`rgb_to_lab`.
    """
    _check(images, mean, std)
    ydbdr: AnyArray = choose(YDBDR, impl, images)(images, mean, std)
    return ydbdr
