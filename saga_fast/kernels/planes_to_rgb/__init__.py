"""planes_to_rgb: the pixels of images that are stored as 4:2:0 planes.

An image is its brightness Y (H, W), then its colours Cb and Cr (H / 2, W / 2, rounded up), uint8, row by row: what most
JPEGs hold after their DCT, in 1.5 bytes per pixel where RGB takes 3. The pixels are those of libjpeg-turbo, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import AnyArray, Array, NDArray, choose, to_numpy
from saga_fast.kernels.planes_to_rgb._numba import planes_to_rgb_image, planes_to_rgb_numba
from saga_fast.kernels.planes_to_rgb.reference import num_bytes, planes_to_rgb_reference

__all__ = ["num_bytes", "planes_to_rgb", "planes_to_rgb_image"]


def _lazy_triton(planes: Any, sizes: NDArray) -> Any:
    """Import Triton on the first call."""
    from saga_fast.kernels.planes_to_rgb._triton import planes_to_rgb_triton

    return planes_to_rgb_triton(planes, sizes)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "reference": planes_to_rgb_reference,
    "numba": planes_to_rgb_numba,
    "triton": _lazy_triton,
}


def planes_to_rgb(planes: AnyArray, sizes: Array, *, impl: str | None = None) -> AnyArray:
    """Convert 4:2:0 planes to RGB as libjpeg-turbo does: smooth upsampling of the colours, then JFIF's YCbCr.

    Args:
        planes: (n,) uint8, contiguous: images one after the other, see the module.
        sizes: (B, 2) integers on the CPU, height and width of each image.
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) and ``"reference"`` never fall back.

    Returns:
        (m,) uint8, the images (H, W, 3) one after the other.

    Raises:
        ValueError: invalid dtype or shape, or sizes whose planes have not n bytes.
    """
    heights_widths = to_numpy(sizes, np.int64)
    if heights_widths.ndim != 2 or heights_widths.shape[1] != 2 or (heights_widths < 1).any():
        raise ValueError(f"sizes must be (B, 2), each at least 1, got {heights_widths.tolist()}")
    if planes.ndim != 1 or "uint8" not in str(planes.dtype):
        raise ValueError(f"planes must be uint8 (n,), got {planes.dtype} {tuple(planes.shape)}")
    expected = int(num_bytes(*heights_widths.T).sum())
    if len(planes) != expected:
        raise ValueError(f"planes of these sizes have {expected} bytes, got {len(planes)}")
    pixels: AnyArray = choose(IMPLEMENTATIONS, impl, planes)(planes, heights_widths)
    return pixels
