"""attention_boxes on the CPU: one image per thread, the features read once, the heatmap one row at a time.

The upsampling is separable: a line of the heatmap is one column of the map upsampled the other way, (v, size), times
a (v, size) matrix, and both vectorise along size. The box is searched from its four sides inward, top and bottom on
rows, left and right on columns, up to the first line with a pixel above delta. The weights of a pixel sum to 1 and
those below zero to at least -n, so a line of values from low to high has no pixel above high + n * (high - low): most
lines outside the box are passed over by that bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, NDArray, like, to_numpy
from saga_fast.kernels._jit import FAST_SUMS, PARALLEL_LOCK, jit, prange
from saga_fast.kernels.attention_boxes.reference import bicubic_matrix

# A bound this far below delta decides: above float32's rounding of values up to about 1.2, far below what a line loses
# by being computed for nothing.
_SLACK = np.float32(1e-5)


@lru_cache(maxsize=16)
def _upsampling(size: int, cells: int) -> tuple[NDArray, np.float32]:
    """The matrix (cells, size) and the largest sum of a pixel's weights below zero, sign dropped."""
    matrix = bicubic_matrix(size, cells)
    negative = np.float32(np.maximum(-matrix, 0.0).sum(1).max())
    return np.ascontiguousarray(matrix.T, dtype=np.float32), negative


@jit(fastmath=FAST_SUMS)
def _coarse_nchw(a_CP: Any, w_C: Any, m_P: Any) -> None:
    """Channel-weighted sum, positions contiguous: 8 channels per sweep over m_P, 9.7 ms for 11.0 (B 256, C 2048)."""
    channels, positions = a_CP.shape
    whole = channels - channels % 8
    m_P[:] = np.float32(0.0)
    for c in range(0, whole, 8):
        w0, w1, w2, w3 = w_C[c], w_C[c + 1], w_C[c + 2], w_C[c + 3]
        w4, w5, w6, w7 = w_C[c + 4], w_C[c + 5], w_C[c + 6], w_C[c + 7]
        for p in range(positions):
            low = w0 * a_CP[c, p] + w1 * a_CP[c + 1, p] + w2 * a_CP[c + 2, p] + w3 * a_CP[c + 3, p]
            high = w4 * a_CP[c + 4, p] + w5 * a_CP[c + 5, p] + w6 * a_CP[c + 6, p] + w7 * a_CP[c + 7, p]
            m_P[p] += low + high
    for c in range(whole, channels):
        w = w_C[c]
        for p in range(positions):
            m_P[p] += w * a_CP[c, p]


@jit(fastmath=FAST_SUMS)
def _coarse_nhwc(a_PC: Any, w_C: Any, m_P: Any) -> None:
    """Channel-weighted sum, channels contiguous: 4 positions at once, which share the weights."""
    positions, channels = a_PC.shape
    whole = positions - positions % 4
    for p in range(0, whole, 4):
        t0, t1, t2, t3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for c in range(channels):
            w = w_C[c]
            t0 += w * a_PC[p, c]
            t1 += w * a_PC[p + 1, c]
            t2 += w * a_PC[p + 2, c]
            t3 += w * a_PC[p + 3, c]
        m_P[p], m_P[p + 1], m_P[p + 2], m_P[p + 3] = t0, t1, t2, t3
    for p in range(whole, positions):
        total = np.float32(0.0)
        for c in range(channels):
            total += w_C[c] * a_PC[p, c]
        m_P[p] = total


@jit()
def _scale(m_P: Any, minmax: Any) -> Any:
    """ReLU and scaling to [0, 1] in place; False for a map that is constant or not finite."""
    low, high, finite = np.float32(np.inf), np.float32(-np.inf), True
    for p in range(m_P.shape[0]):
        value = m_P[p]
        finite = finite and np.isfinite(value)
        value = max(value, np.float32(0.0))
        m_P[p] = value
        low, high = min(low, value), max(high, value)
    if not finite or not high > low:
        return False
    offset = low if minmax else np.float32(0.0)
    for p in range(m_P.shape[0]):
        m_P[p] = (m_P[p] - offset) / (high - offset)
    return True


@jit(fastmath=FAST_SUMS)
def _upsample(m_UV: Any, up_US: Any, negative: Any, half_VS: Any, bound_S: Any) -> None:
    """m upsampled along u only, (v, size), and what no pixel of line s along v can exceed, (size,)."""
    cells, others, size = m_UV.shape[0], m_UV.shape[1], up_US.shape[1]
    low_S = np.empty(size, np.float32)
    for j in range(others):
        line = half_VS[j]
        line[:] = np.float32(0.0)
        for i in range(cells):
            value, weights = m_UV[i, j], up_US[i]
            for s in range(size):
                line[s] += value * weights[s]
        if j == 0:
            low_S[:], bound_S[:] = line, line
        for s in range(size):
            low_S[s], bound_S[s] = min(low_S[s], line[s]), max(bound_S[s], line[s])
    for s in range(size):
        bound_S[s] += negative * (bound_S[s] - low_S[s])


@jit(fastmath=FAST_SUMS)
def _reaches(half_VS: Any, s: Any, up_VS: Any, delta: Any, line_S: Any) -> Any:
    """Whether line s has a pixel above delta; four cells per sweep."""
    cells, size = up_VS.shape
    whole = cells - cells % 4
    line_S[:] = np.float32(0.0)
    for j in range(0, whole, 4):
        a, b, c, d = half_VS[j, s], half_VS[j + 1, s], half_VS[j + 2, s], half_VS[j + 3, s]
        for x in range(size):
            line_S[x] += a * up_VS[j, x] + b * up_VS[j + 1, x] + c * up_VS[j + 2, x] + d * up_VS[j + 3, x]
    for j in range(whole, cells):
        a = half_VS[j, s]
        for x in range(size):
            line_S[x] += a * up_VS[j, x]
    largest = line_S[0]
    for x in range(size):
        largest = max(largest, line_S[x])
    return largest > delta


@jit()
def _extent(m_UV: Any, up_US: Any, up_VS: Any, negative: Any, delta: Any) -> Any:
    """First line along v with a pixel above delta, and the end of the last; (size, size) where there is none."""
    size = up_US.shape[1]
    half_VS, bound_S = np.empty((m_UV.shape[1], size), np.float32), np.empty(size, np.float32)
    line_S = np.empty(size, np.float32)
    _upsample(m_UV, up_US, negative, half_VS, bound_S)
    begin, end = 0, size
    while begin < size and not (bound_S[begin] > delta - _SLACK and _reaches(half_VS, begin, up_VS, delta, line_S)):
        begin += 1
    while end > begin + 1 and not (
        bound_S[end - 1] > delta - _SLACK and _reaches(half_VS, end - 1, up_VS, delta, line_S)
    ):
        end -= 1
    return begin, end


@jit()
def _box(m_UV: Any, rows: Any, columns: Any, delta: Any, out: Any) -> Any:
    """The box of the pixels above delta of one scaled coarse map; False where there is none.

    A pixel at delta to the last digit may count in only one of the two directions, whose sums round differently: none.
    """
    (rows_US, negative_u), (columns_VS, negative_v) = rows, columns
    size = rows_US.shape[1]
    top, bottom = _extent(m_UV, rows_US, columns_VS, negative_v, delta)
    if top == size:
        return False
    left, right = _extent(m_UV.T, columns_VS, rows_US, negative_u, delta)
    if left == size:
        return False
    out[0], out[1] = left / size, top / size
    out[2], out[3] = (right - left) / size, (bottom - top) / size
    return True


@jit(parallel=True)
def _boxes(
    a_B: Any, channels_last: Any, w_BC: Any, rows: Any, columns: Any, delta: Any, minmax: Any, boxes: Any, found: Any
) -> None:
    """a (B, C, u * v), or (B, u * v, C) for channels_last."""
    u, v = rows[0].shape[0], columns[0].shape[0]
    for n in prange(a_B.shape[0]):
        m_P = np.empty(u * v, np.float32)
        if channels_last:
            _coarse_nhwc(a_B[n], w_BC[n], m_P)
        else:
            _coarse_nchw(a_B[n], w_BC[n], m_P)
        found[n] = _scale(m_P, minmax) and _box(m_P.reshape(u, v), rows, columns, delta, boxes[n])


def attention_boxes_numba(features: Array, weights: Array, delta: float, size: int, normalize: str) -> tuple[Any, Any]:
    """See :func:`saga_fast.kernels.attention_boxes`."""
    a = to_numpy(features)
    a = a if a.dtype == np.float32 else a.astype(np.float32)  # float16: Numba has no arithmetic for it on the CPU
    w_BC = np.ascontiguousarray(to_numpy(weights), dtype=np.float32)
    batch, channels, u, v = a.shape
    boxes = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (batch, 1))
    found = np.zeros(batch, np.bool_)
    a_BUVC = a.transpose(0, 2, 3, 1)
    channels_last = a_BUVC.flags.c_contiguous and not a.flags.c_contiguous
    if channels_last:
        a_B = a_BUVC.reshape(batch, u * v, channels)
    else:
        a_B = np.ascontiguousarray(a).reshape(batch, channels, u * v)
    rows, columns = _upsampling(size, u), _upsampling(size, v)
    with PARALLEL_LOCK:
        _boxes(a_B, channels_last, w_BC, rows, columns, np.float32(delta), normalize == "minmax", boxes, found)
    return like(boxes, features), like(found, features)
