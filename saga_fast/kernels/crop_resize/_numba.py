"""crop_resize on the CPU: two separable passes in float32 per view, the cheaper one first.

A window at least as high as the view is reduced vertically first: whole rows of the stored image, 3 * width
contiguous bytes, are weighted and added, which vectorises, and the horizontal pass then runs on ``size`` rows
instead of ``height``. A lower window is widened horizontally first, on its ``height`` rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, like, to_numpy
from saga_fast.kernels._jit import FAST_SUMS, PARALLEL_LOCK, jit, prange

_HALF = np.float32(0.5)
# Unsigned indices spare Numba's test for negative ones: the horizontal pass of 224 rows takes 116 us with them and 206
# without.
_U3, _U1, _U2 = np.uint64(3), np.uint64(1), np.uint64(2)


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
def _horizontal(line: Any, first: Any, count: Any, weights: Any, out: Any) -> None:
    """One row: (3 * width) values to (3 * size) float32."""
    for x in range(first.shape[0]):
        red, green, blue = np.float32(0.0), np.float32(0.0), np.float32(0.0)
        at = _U3 * np.uint64(first[x])
        for k in range(count[x]):
            w = weights[x, k]
            red += w * np.float32(line[at])
            green += w * np.float32(line[at + _U1])
            blue += w * np.float32(line[at + _U2])
            at += _U3
        to = _U3 * np.uint64(x)
        out[to], out[to + _U1], out[to + _U2] = red, green, blue


@jit(fastmath=FAST_SUMS)
def _vertical(rows: Any, weights: Any, out: Any) -> None:
    """Weighted sum of whole rows (n, L) to out (L,); up to three taps, most rows need no more, in one sweep."""
    taps = rows.shape[0]
    if taps == 1:
        for x in range(out.shape[0]):
            out[x] = weights[0] * np.float32(rows[0, x])
    elif taps == 2:
        for x in range(out.shape[0]):
            out[x] = weights[0] * np.float32(rows[0, x]) + weights[1] * np.float32(rows[1, x])
    else:
        for x in range(out.shape[0]):
            left = weights[0] * np.float32(rows[0, x]) + weights[1] * np.float32(rows[1, x])
            out[x] = left + weights[2] * np.float32(rows[2, x])
        for k in range(3, taps):
            for x in range(out.shape[0]):
                out[x] += weights[k] * np.float32(rows[k, x])


@jit()
def _store(line: Any, out: Any) -> None:
    """Round to the nearest level; the weights are positive and sum to 1, so nothing leaves [0, 255]."""
    for x in range(line.shape[0]):
        out[x] = np.uint8(np.int32(line[x] + _HALF))


@jit()
def _crop_resize(image: Any, top: Any, left: Any, height: Any, width: Any, out: Any) -> None:
    """One view: image (H, 3 W) uint8, out (size, 3 size) uint8."""
    size = out.shape[0]
    y_first, y_count, y_weights = _taps(height, size)
    x_first, x_count, x_weights = _taps(width, size)
    window = image[top : top + height, 3 * left : 3 * (left + width)]
    line = np.empty(3 * size, np.float32)
    if height >= size:
        wide = np.empty(3 * width, np.float32)
        for y in range(size):
            _vertical(window[y_first[y] : y_first[y] + y_count[y]], y_weights[y], wide)
            _horizontal(wide, x_first, x_count, x_weights, line)
            _store(line, out[y])
    else:
        rows = np.empty((height, 3 * size), np.float32)
        for i in range(height):
            _horizontal(window[i], x_first, x_count, x_weights, rows[i])
        for y in range(size):
            _vertical(rows[y_first[y] : y_first[y] + y_count[y]], y_weights[y], line)
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


def crop_resize_numba(images: Array, windows: Array, size: int, flip: Array | None) -> Any:
    """See :func:`saga_fast.kernels.crop_resize`; images (B, H, W, 3), windows (B, V, 4), flip (B, V)."""
    views = np.empty((*windows.shape[:2], size, size, 3), np.uint8)
    with PARALLEL_LOCK:
        _crop_resize_batch(
            np.ascontiguousarray(to_numpy(images)), np.ascontiguousarray(to_numpy(windows), np.int32), views
        )
    if flip is not None:
        mirrored = to_numpy(flip, np.bool_)
        views[mirrored] = views[mirrored][:, :, ::-1]
    return like(views, images)
