"""sample_windows on the CPU with Numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels._jit import jit
from saga_fast.kernels.philox import WINDOW, uniforms
from saga_fast.kernels.sample_windows.reference import SNAP


@jit()
def sample_window(
    box: Any, height: Any, width: Any, seed: Any, epoch: Any, index: Any, view: Any, scale: Any, ratio: Any, out: Any
) -> None:
    """Draw one window: the box's pixel rectangle, ten tries, then the centre."""
    x, y, w, h = np.float64(box[0]), np.float64(box[1]), np.float64(box[2]), np.float64(box[3])
    left = min(max(np.int64(math.floor(x * width + SNAP)), 0), width - 1)
    top = min(max(np.int64(math.floor(y * height + SNAP)), 0), height - 1)
    right = min(max(np.int64(math.ceil((x + w) * width - SNAP)), left + 1), width)
    bottom = min(max(np.int64(math.ceil((y + h) * height - SNAP)), top + 1), height)
    rows, columns = bottom - top, right - left
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for block in range(10):
        u0, u1, u2, u3 = uniforms(seed, epoch, index, view, WINDOW, block)
        area = rows * columns * (scale[0] + (scale[1] - scale[0]) * u0)
        aspect = math.exp(low + (high - low) * u1)
        crop_w, crop_h = np.int64(np.rint(math.sqrt(area * aspect))), np.int64(np.rint(math.sqrt(area / aspect)))
        if 0 < crop_w <= columns and 0 < crop_h <= rows:
            out[0] = top + np.int64(u2 * (rows - crop_h + 1))
            out[1] = left + np.int64(u3 * (columns - crop_w + 1))
            out[2], out[3] = crop_h, crop_w
            return
    crop_w, crop_h = columns, rows
    if columns / rows < ratio[0]:
        crop_h = max(np.int64(np.rint(columns / ratio[0])), np.int64(1))
    elif columns / rows > ratio[1]:
        crop_w = max(np.int64(np.rint(rows * ratio[1])), np.int64(1))
    out[0], out[1] = top + (rows - crop_h) // 2, left + (columns - crop_w) // 2
    out[2], out[3] = crop_h, crop_w


# Serial for the reason given in philox.py: decoding threads call it.
@jit()
def _sample_windows(
    boxes: Any, sizes: Any, seed: Any, epoch: Any, indices: Any, scale: Any, ratio: Any, out: Any
) -> None:
    for n in range(boxes.shape[0]):
        for view in range(boxes.shape[1]):
            sample_window(
                boxes[n, view], sizes[n, 0], sizes[n, 1], seed, epoch, indices[n], view, scale, ratio, out[n, view]
            )


def sample_windows_numba(
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
    s, r = (float(scale[0]), float(scale[1])), (float(ratio[0]), float(ratio[1]))
    _sample_windows(np.ascontiguousarray(boxes), sizes, np.uint64(seed), epoch, indices, s, r, windows)
    return windows
