"""Second half of attention_boxes on the GPU: from one image's coarse map in registers to its box (Eq. 4).

As on the CPU, lines of the heatmap are computed from the outside inward, first rows and then columns, and a bound skips
most lines outside the box: a line that interpolates values in [low, high] has no pixel above high + n * (high - low),
where n bounds the negative weights of a pixel. EDGE_LINES lines from either side make a tile in registers, and few
images need a second tile.
"""

from __future__ import annotations

import triton.language as tl

from saga_fast.kernels._triton import jit

# A line is skipped only if its bound is this far below delta: see _numba.py.
SLACK = tl.constexpr(1e-5)


@jit
def _profile(
    scaled: tl.tensor, stride: tl.constexpr, inner_t: tl.tensor, CELLS: tl.constexpr, SIDE: tl.constexpr
) -> tl.tensor:
    """Return (SIDE,): one line of CELLS values of the coarse map, ``stride`` apart, upsampled."""
    x = tl.arange(0, SIDE)
    line = tl.zeros([SIDE], tl.float32)
    for j in tl.range(0, CELLS, loop_unroll_factor=CELLS if CELLS <= 8 else 1):  # unrolled, so that loads overlap
        line += tl.load(scaled + j * stride) * tl.load(inner_t + j * SIDE + x)
    return line


@jit
def _bounds(
    scaled: tl.tensor,
    outer_stride: tl.constexpr,
    inner_stride: tl.constexpr,
    outer_t: tl.tensor,
    negative: tl.tensor,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    SIDE: tl.constexpr,
) -> tl.tensor:
    """Return (SIDE,): an upper bound of the pixels of each line across the outer axis."""
    low, high = tl.full([SIDE], float("inf"), tl.float32), tl.full([SIDE], -float("inf"), tl.float32)
    for j in range(INNER):
        value = _profile(scaled + j * inner_stride, outer_stride, outer_t, OUTER, SIDE)
        low, high = tl.minimum(low, value), tl.maximum(high, value)
    return high + negative * (high - low)


@jit
def _extent(
    scaled: tl.tensor,
    outer_stride: tl.constexpr,
    inner_stride: tl.constexpr,
    outer_t: tl.tensor,
    inner_t: tl.tensor,
    negative_inner: tl.tensor,
    threshold: tl.tensor,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> tl.tensor:
    """Return the first and the last line across the outer axis with a pixel above the threshold, or SIZE and -1."""
    bound = _bounds(scaled, outer_stride, inner_stride, outer_t, negative_inner, OUTER, INNER, SIDE)
    line = tl.arange(0, SIDE)
    candidate = (bound > threshold - SLACK) & (line < SIZE)
    begin = tl.min(tl.where(candidate, line, SIDE), axis=0)
    end = tl.max(tl.where(candidate, line, -1), axis=0)
    first, last = SIZE, -1
    k = tl.arange(0, 2 * EDGE_LINES)
    # One tile holds the lines from ``begin`` on and the lines up to ``end``.
    while ((first == SIZE) & (begin < SIDE)) | ((last < 0) & (end >= 0)):
        start, stop = tl.minimum(begin, SIDE - EDGE_LINES), tl.maximum(end + 1, EDGE_LINES)
        y = tl.where(k < EDGE_LINES, start + k, stop - 2 * EDGE_LINES + k)
        heat = tl.zeros([2 * EDGE_LINES, SIDE], tl.float32)
        for i in range(OUTER):
            upsampled = _profile(scaled + i * outer_stride, inner_stride, inner_t, INNER, SIDE)
            heat += tl.load(outer_t + i * SIDE + y)[:, None] * upsampled[None, :]
        hit = tl.max(heat, axis=1) > threshold
        first = tl.minimum(first, tl.min(tl.where(hit & (k < EDGE_LINES), y, SIZE), axis=0))
        last = tl.maximum(last, tl.max(tl.where(hit & (k >= EDGE_LINES), y, -1), axis=0))
        begin = tl.min(tl.where(candidate & (line >= start + EDGE_LINES), line, SIDE), axis=0)
        end = tl.max(tl.where(candidate & (line < stop - EDGE_LINES), line, -1), axis=0)
    return first, last


@jit
def store_box(
    coarse_P: tl.tensor,
    n: tl.tensor,
    scaled: tl.tensor,
    rows_t: tl.tensor,
    columns_t: tl.tensor,
    negative_u: tl.tensor,
    negative_v: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    u: tl.constexpr,
    v: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    MINMAX: tl.constexpr,
    P_PAD: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> None:
    """Store the box of image n: ReLU, scaling, separable bicubic, threshold, box.

    scaled (u * v,) float32 is scratch for the scaled map. rows_t (u, SIDE) and columns_t (v, SIDE) are the transposed
    bicubic matrices, SIDE a power of two: SIZE padded with zero weights, so that no load needs a mask. negative_u and
    negative_v bound the sum of a pixel's negative weights.
    """
    p = tl.arange(0, P_PAD)
    non_finite = tl.max(tl.where((p < u * v) & ~(tl.abs(coarse_P) < float("inf")), 1, 0), axis=0)
    relu = tl.where(coarse_P > 0.0, coarse_P, 0.0)
    high = tl.max(tl.where(p < u * v, relu, 0.0), axis=0)
    low = tl.min(tl.where(p < u * v, relu, float("inf")), axis=0)
    usable = (non_finite == 0) & (high > low)
    offset = low if MINMAX else 0.0
    span = tl.where(usable, high - offset, 1.0)
    tl.store(scaled + p, tl.div_rn(relu - offset, span), mask=p < u * v)
    tl.debug_barrier()

    top, bottom, left, right = SIZE, -1, SIZE, -1
    if usable:
        top, bottom = _extent(scaled, v, 1, rows_t, columns_t, negative_v, delta, u, v, SIZE, SIDE, EDGE_LINES)
        if bottom >= 0:
            left, right = _extent(scaled, 1, v, columns_t, rows_t, negative_u, delta, v, u, SIZE, SIDE, EDGE_LINES)
    # Rows and columns are summed in different orders. A pixel within rounding of delta may be above it in only one of
    # the two directions: no box.
    is_found = right >= 0
    left, top = tl.where(is_found, left, 0), tl.where(is_found, top, 0)
    width = tl.where(is_found, right + 1 - left, SIZE)
    height = tl.where(is_found, bottom + 1 - top, SIZE)
    # Correctly rounded float32 quotients of small integers equal the oracle's float64 quotients rounded to float32.
    side = tl.full([], SIZE, tl.float32)
    tl.store(boxes + 4 * n, tl.div_rn(left.to(tl.float32), side))
    tl.store(boxes + 4 * n + 1, tl.div_rn(top.to(tl.float32), side))
    tl.store(boxes + 4 * n + 2, tl.div_rn(width.to(tl.float32), side))
    tl.store(boxes + 4 * n + 3, tl.div_rn(height.to(tl.float32), side))
    tl.store(found + n, tl.where(is_found, 1, 0).to(tl.uint8))
