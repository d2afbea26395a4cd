"""The oracle of attention_boxes: plain NumPy float64 with full-size heatmaps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, NDArray, convert_like, to_numpy

A = -0.75  # torch's bicubic coefficient


def cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.75, as in torch and OpenCV."""
    d = abs(distance)
    if d <= 1.0:
        return ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
    if d < 2.0:
        return ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A
    return 0.0


def bicubic_matrix(size: int, cells: int) -> NDArray:
    """Bicubic upsampling matrix (size, cells) float64; taps beyond the border go to the border cell."""
    matrix = np.zeros((size, cells))
    for i in range(size):
        centre = (i + 0.5) * cells / size - 0.5
        first = math.floor(centre) - 1
        for tap in range(first, first + 4):
            matrix[i, min(max(tap, 0), cells - 1)] += cubic(centre - tap)
    return matrix


def heatmaps_reference(features: Array, weights: Array, size: int, normalize: str) -> tuple[NDArray, NDArray]:
    """Return scaled heatmaps (B, size, size) float64 and usable (B,) bool: finite and not constant."""
    a, w = to_numpy(features, np.float64), to_numpy(weights, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.einsum("bc,bcuv->buv", w, a)
    coarse = np.maximum(total, 0.0)
    low, high = coarse.min((1, 2)), coarse.max((1, 2))
    usable = np.isfinite(total).all((1, 2)) & (high > low)
    offset = low if normalize == "minmax" else np.zeros_like(low)
    coarse[~usable] = 0.0
    span = np.where(usable, high - offset, 1.0)
    scaled = (coarse - np.where(usable, offset, 0.0)[:, None, None]) / span[:, None, None]
    rows, columns = bicubic_matrix(size, a.shape[2]), bicubic_matrix(size, a.shape[3])
    return rows @ scaled @ columns.T, usable


def attention_boxes_reference(
    features: Array, weights: Array, delta: float, size: int, normalize: str
) -> tuple[Any, Any]:
    """See :func:`saga_fast.kernels.attention_boxes`."""
    heatmaps, usable = heatmaps_reference(features, weights, size, normalize)
    masks = (heatmaps > delta) & usable[:, None, None]
    boxes = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (len(masks), 1))
    found: NDArray = np.any(masks, axis=(1, 2))
    for n in np.flatnonzero(found):
        ys, xs = np.nonzero(masks[n])
        edges = np.array([xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()])
        boxes[n] = edges / size
    return convert_like(boxes, features), convert_like(found, features)
