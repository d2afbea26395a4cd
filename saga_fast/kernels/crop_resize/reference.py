"""The oracle of crop_resize: the antialiased triangle filter as two float64 matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, NDArray, convert_like, to_numpy


def triangle_matrix(size: int, length: int) -> NDArray:
    """Return Pillow's BILINEAR filter as a matrix (size, length) float64 whose rows sum to 1."""
    scale = length / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length)[None] + 0.5 - centres[:, None]) / support
    weights: NDArray = np.maximum(1.0 - distance, 0.0)
    weights /= weights.sum(1, keepdims=True)
    return weights


def crop_resize_reference(images: Array, windows: Array, size: int, flip: Array | None) -> Any:
    """See :func:`saga_fast.kernels.crop_resize`; images (B, H, W, 3), windows (B, V, 4), flip (B, V)."""
    images_np, windows = to_numpy(images), to_numpy(windows)
    views = np.empty((*windows.shape[:2], size, size, 3), np.uint8)
    for n, v in np.ndindex(*windows.shape[:2]):
        top, left, height, width = windows[n, v]
        crop = images_np[n, top : top + height, left : left + width].astype(np.float64)
        rows, columns = triangle_matrix(size, int(height)), triangle_matrix(size, int(width))
        resized = np.einsum("yi,ijc,xj->yxc", rows, crop, columns, optimize=True)
        views[n, v] = np.floor(resized + 0.5)
        if flip is not None and flip[n, v]:
            views[n, v] = views[n, v, :, ::-1]
    return convert_like(views, images)
