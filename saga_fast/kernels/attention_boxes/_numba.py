"""attention_boxes on the CPU: one image per thread, the features read once, the heatmap one row at a time.

The upsampling is separable. A row of the heatmap is (row weights . coarse map) . column weights, a (v,) vector
times a (v, size) matrix, which vectorises; a row whose bound max|.| * max(sum |column weights|) is not above delta is
skipped. A row is searched from the left up to the best left edge so far and from the right down to the best right
edge so far.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, NDArray, like, to_numpy
from saga_fast.kernels._jit import FAST_SUMS, PARALLEL_LOCK, jit, prange
from saga_fast.kernels.attention_boxes.reference import bicubic_matrix


@lru_cache(maxsize=16)
def _matrix(size: int, cells: int) -> NDArray:
    return bicubic_matrix(size, cells).astype(np.float32)


@jit(fastmath=FAST_SUMS)
def _coarse_nchw(a_CP: Any, w_C: Any, m_P: Any) -> None:
    """Channel-weighted sum and ReLU, positions contiguous."""
    m_P[:] = np.float32(0.0)
    for c in range(a_CP.shape[0]):
        w = w_C[c]
        for p in range(a_CP.shape[1]):
            m_P[p] += w * a_CP[c, p]


@jit(fastmath=FAST_SUMS)
def _coarse_nhwc(a_PC: Any, w_C: Any, m_P: Any) -> None:
    """Channel-weighted sum and ReLU, channels contiguous."""
    for p in range(a_PC.shape[0]):
        total = np.float32(0.0)
        for c in range(a_PC.shape[1]):
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
def _box(m_P: Any, rows: Any, columns_t: Any, reach: Any, delta: Any, out: Any) -> Any:
    """The box of the pixels above delta of one scaled coarse map; False where there is none."""
    size, u = rows.shape
    v = columns_t.shape[0]
    coarse_row, line = np.empty(v, np.float32), np.empty(size, np.float32)
    left, right, top, bottom = size, -1, -1, -1
    for y in range(size):
        coarse_row[:] = np.float32(0.0)
        for i in range(u):
            w = rows[y, i]
            if w != np.float32(0.0):
                for j in range(v):
                    coarse_row[j] += w * m_P[i * v + j]
        largest = np.float32(0.0)
        for j in range(v):
            largest = max(largest, abs(coarse_row[j]))
        if largest * reach <= delta:
            continue
        line[:] = np.float32(0.0)
        for j in range(v):
            w = coarse_row[j]
            for x in range(size):
                line[x] += w * columns_t[j, x]
        first = 0
        while first < size and not line[first] > delta:
            first += 1
        if first == size:
            continue
        last = size - 1
        while not line[last] > delta:
            last -= 1
        left, right, bottom = min(left, first), max(right, last), y
        if top < 0:
            top = y
    if top < 0:
        return False
    out[0], out[1] = left / size, top / size
    out[2], out[3] = (right + 1 - left) / size, (bottom + 1 - top) / size
    return True


@jit(parallel=True)
def _boxes_nchw(
    a_BCP: Any, w_BC: Any, rows: Any, columns_t: Any, reach: Any, delta: Any, minmax: Any, boxes: Any, found: Any
) -> None:
    for n in prange(a_BCP.shape[0]):
        m_P = np.empty(a_BCP.shape[2], np.float32)
        _coarse_nchw(a_BCP[n], w_BC[n], m_P)
        found[n] = _scale(m_P, minmax) and _box(m_P, rows, columns_t, reach, delta, boxes[n])


@jit(parallel=True)
def _boxes_nhwc(
    a_BPC: Any, w_BC: Any, rows: Any, columns_t: Any, reach: Any, delta: Any, minmax: Any, boxes: Any, found: Any
) -> None:
    for n in prange(a_BPC.shape[0]):
        m_P = np.empty(a_BPC.shape[1], np.float32)
        _coarse_nhwc(a_BPC[n], w_BC[n], m_P)
        found[n] = _scale(m_P, minmax) and _box(m_P, rows, columns_t, reach, delta, boxes[n])


def attention_boxes_numba(features: Array, weights: Array, delta: float, size: int, normalize: str) -> tuple[Any, Any]:
    """See :func:`saga_fast.kernels.attention_boxes`."""
    a = to_numpy(features)
    a = a if a.dtype == np.float32 else a.astype(np.float32)  # float16: Numba has no arithmetic for it on the CPU
    w_BC = np.ascontiguousarray(to_numpy(weights), dtype=np.float32)
    batch, channels, u, v = a.shape
    rows, columns_t = _matrix(size, u), np.ascontiguousarray(_matrix(size, v).T)
    reach = np.float32(np.abs(columns_t).sum(0).max())
    boxes = np.tile(np.array([0.0, 0.0, 1.0, 1.0], np.float32), (batch, 1))
    found = np.zeros(batch, np.bool_)
    arguments = (w_BC, rows, columns_t, reach, np.float32(delta), normalize == "minmax", boxes, found)
    a_BUVC = a.transpose(0, 2, 3, 1)
    with PARALLEL_LOCK:
        if a_BUVC.flags.c_contiguous and not a.flags.c_contiguous:
            _boxes_nhwc(a_BUVC.reshape(batch, u * v, channels), *arguments)
        else:
            _boxes_nchw(np.ascontiguousarray(a).reshape(batch, channels, u * v), *arguments)
    return like(boxes, features), like(found, features)
