"""The oracle of sample_windows: torchvision's ``RandomResizedCrop.get_params`` inside a box."""

from __future__ import annotations

import math

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels.philox import WINDOW, uniforms_reference

SNAP = 1e-3  # px; float32 boxes cannot hold k / size exactly


def pixel_rectangle(box: NDArray, height: int, width: int) -> tuple[int, int, int, int]:
    """Convert a normalised box [x_min, y_min, w, h] to (top, left, height, width) in pixels."""
    x, y, w, h = (float(value) for value in box)
    left = min(max(math.floor(x * width + SNAP), 0), width - 1)
    top = min(max(math.floor(y * height + SNAP), 0), height - 1)
    right = min(max(math.ceil((x + w) * width - SNAP), left + 1), width)
    bottom = min(max(math.ceil((y + h) * height - SNAP), top + 1), height)
    return top, left, bottom - top, right - left


def sample_windows_reference(
    boxes: NDArray,
    sizes: NDArray,
    seed: int,
    epoch: int,
    indices: NDArray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray:
    """See :func:`saga_fast.kernels.sample_windows`; boxes (B, V, 4)."""
    windows = np.empty(boxes.shape, np.int32)
    for n, view in np.ndindex(*boxes.shape[:2]):
        top, left, height, width = pixel_rectangle(boxes[n, view], int(sizes[n, 0]), int(sizes[n, 1]))
        for block in range(10):
            draws = uniforms_reference(seed, epoch, int(indices[n]), view, WINDOW, block)
            area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
            aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * draws[1])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                i, j = int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1))
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = max(round(width / ratio[0]), 1)
            elif width / height > ratio[1]:
                w = max(round(height * ratio[1]), 1)
            i, j = (height - h) // 2, (width - w) // 2
        windows[n, view] = top + i, left + j, h, w
    return windows
