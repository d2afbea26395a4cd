"""crop_resize on the CPU: two separable passes in float32 per view, the cheaper one first.

A window at least as high as the view is reduced vertically first: whole rows of the stored image, 3 * width
contiguous bytes, are weighted and added, which vectorises, and the horizontal pass then runs on ``size`` rows
instead of ``height``. A lower window is widened horizontally first, on its ``height`` rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels._jit import FAST_SUMS, PARALLEL_LOCK, jit, prange


@jit()
def _taps(length: Any, size: Any) -> Any:
    """First input pixel, number of taps and weights (size, taps) of the antialiased triangle filter."""
    scale = length / size
    support = max(scale, 1.0)
    first, count = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.zeros((size, np.int64(np.ceil(support)) * 2 + 1), np.float32)
    for i in range(size):
        centre = (i + 0.5) * scale
        low: Any = max(np.int64(centre - support + 0.5), 0)
        high: Any = min(np.int64(centre + support + 0.5), length)
        total = 0.0
        for k in range(high - low):
            total += max(1.0 - abs(low + k + 0.5 - centre) / support, 0.0)
        for k in range(high - low):
            weights[i, k] = max(1.0 - abs(low + k + 0.5 - centre) / support, 0.0) / total
        first[i], count[i] = low, high - low
    return first, count, weights


@jit(fastmath=FAST_SUMS)
def _narrow(line: Any, first: Any, count: Any, weights: Any, out: Any) -> None:
    """Horizontal pass of one row: (3 * width) values to (3 * size) float32."""
    for x in range(first.shape[0]):
        red, green, blue = np.float32(0.0), np.float32(0.0), np.float32(0.0)
        at = 3 * first[x]
        for k in range(count[x]):
            w = weights[x, k]
            red += w * np.float32(line[at])
            green += w * np.float32(line[at + 1])
            blue += w * np.float32(line[at + 2])
            at += 3
        out[3 * x], out[3 * x + 1], out[3 * x + 2] = red, green, blue


@jit(fastmath=FAST_SUMS)
def _add_row(out: Any, w: Any, row: Any) -> None:
    for x in range(out.shape[0]):
        out[x] += w * np.float32(row[x])


@jit()
def _store(line: Any, out: Any) -> None:
    """Round to the nearest level; the weights are positive and sum to 1, so nothing leaves [0, 255]."""
    for x in range(line.shape[0]):
        out[x] = np.uint8(line[x] + np.float32(0.5))


@jit()
def _crop_resize(image: Any, top: Any, left: Any, height: Any, width: Any, out: Any) -> None:
    """One view: image (H, 3 W) uint8, out (size, 3 size) uint8."""
    size = out.shape[0]
    y_first, y_count, y_weights = _taps(height, size)
    x_first, x_count, x_weights = _taps(width, size)
    begin, end = 3 * left, 3 * (left + width)
    line = np.empty(3 * size, np.float32)
    if height >= size:
        tall = np.empty(end - begin, np.float32)
        for y in range(size):
            tall[:] = np.float32(0.0)
            for k in range(y_count[y]):
                _add_row(tall, y_weights[y, k], image[top + y_first[y] + k, begin:end])
            _narrow(tall, x_first, x_count, x_weights, line)
            _store(line, out[y])
    else:
        rows = np.empty((height, 3 * size), np.float32)
        for i in range(height):
            _narrow(image[top + i, begin:end], x_first, x_count, x_weights, rows[i])
        for y in range(size):
            line[:] = np.float32(0.0)
            for k in range(y_count[y]):
                _add_row(line, y_weights[y, k], rows[y_first[y] + k])
            _store(line, out[y])


@jit()
def crop_resize_image(image: Any, windows: Any, out: Any) -> None:
    """All views of one image on the calling thread, without the GIL: what the engines' decoding threads call.

    image (H, W, 3) uint8 C-contiguous; windows (V, 4) int32, inside the image; out (V, size, size, 3) uint8.
    """
    size = out.shape[1]
    flat = image.reshape(image.shape[0], image.shape[1] * 3)
    for v in range(windows.shape[0]):
        top, left, height, width = windows[v]
        _crop_resize(
            flat, np.int64(top), np.int64(left), np.int64(height), np.int64(width), out[v].reshape(size, size * 3)
        )


@jit(parallel=True)
def _crop_resize_batch(images: Any, windows: Any, out: Any) -> None:
    views = windows.shape[1]
    for n in prange(images.shape[0] * views):
        crop_resize_image(
            images[n // views],
            windows[n // views, n % views : n % views + 1],
            out[n // views, n % views : n % views + 1],
        )


def crop_resize_numba(images: NDArray, windows: NDArray, size: int) -> NDArray:
    """See :func:`saga_fast.kernels.crop_resize`; images (B, H, W, 3), windows (B, V, 4)."""
    views = np.empty((*windows.shape[:2], size, size, 3), np.uint8)
    with PARALLEL_LOCK:
        _crop_resize_batch(np.ascontiguousarray(images), np.ascontiguousarray(windows), views)
    return views
