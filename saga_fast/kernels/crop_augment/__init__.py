"""crop_augment: crop_resize and augment in one call, from stored images to normalised views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from saga_fast.kernels._dispatch import AnyArray, Array, choose
from saga_fast.kernels.augment import augment, check_output_format, check_parameters
from saga_fast.kernels.crop_resize import check_windows, crop_resize


def _unfused(
    impl: str,
    images: Any,
    windows: Array,
    photometrics: Array | None,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    dtype: torch.dtype,
) -> Any:
    """Run crop_resize, then augment."""
    views = crop_resize(images, windows, size, impl=impl)
    return augment(views, photometrics, mean, std, channels_last=channels_last, dtype=dtype, impl=impl)


def _lazy_triton(*arguments: Any) -> Any:
    """Import Triton on the first call."""
    from saga_fast.kernels.crop_augment._triton import crop_augment_triton

    return crop_augment_triton(*arguments)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "reference": partial(_unfused, "reference"),
    "numba": partial(_unfused, "numba"),
    "triton": _lazy_triton,
}


def crop_augment(
    images: AnyArray,
    windows: Array,
    photometrics: Array | None,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    impl: str | None = None,
) -> AnyArray:
    """Crop, resize, augment and normalise a batch of stored images.

    The result is ``augment(crop_resize(images, windows, size), photometrics, mean, std)``. A training step uploads the
    stored images once and gets all views from one call. On a GPU this takes three launches, and two passes over the
    views fewer than the two ops.

    Args:
        images: (B, Hmax, Wmax, 3) uint8, padded at the bottom and the right.
        windows: (B, V, 4) int32 [top, left, height, width]: see :func:`saga_fast.kernels.crop_resize`.
        photometrics: (B, V, P) float32, or ``None`` to only normalise: see :func:`saga_fast.kernels.augment`.
        size: side S of the views, pixels.
        mean, std: per channel, for values in [0, 1].
        channels_last: return a result whose ``flatten(0, 1)`` is channels_last (tensors only).
        dtype: of the result: float32, float16 or bfloat16 (float32 for NumPy arrays).
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) and ``"reference"`` never fall back.

    Returns:
        (B, V, 3, S, S) of ``dtype``, on the device of ``images``. Windows and photometrics on the CPU are uploaded.

    Raises:
        ValueError: arguments that :func:`saga_fast.kernels.crop_resize` or :func:`saga_fast.kernels.augment` refuses.
    """
    if images.ndim != 4 or windows.ndim != 3:
        shapes = f"{tuple(images.shape)} and {tuple(windows.shape)}"
        raise ValueError(f"images must be (B, Hmax, Wmax, 3) and windows (B, V, 4), got {shapes}")
    check_windows(images, windows)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    check_parameters(photometrics, (windows.shape[0], windows.shape[1]), size, mean, std)
    check_output_format(images, channels_last, dtype)
    implementation = choose(IMPLEMENTATIONS, impl, images)
    views: AnyArray = implementation(images, windows, photometrics, size, mean, std, channels_last, dtype)
    return views
