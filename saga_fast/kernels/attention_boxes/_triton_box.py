"""Second half of attention_boxes on the GPU: from one image's coarse map in registers to its box (Eq. 4).

Lines of the heatmap are computed from the outside inward, EDGE_LINES lines from either side at a time. A bound skips
most lines outside the box. It is tighter than the CPU's: 300 Gaussian blobs on 7 x 7 cells need 1.01 tiles of 4 + 4
lines on average; with the CPU's bound, they need 6.

Rows (axis 0) and columns (axis 1) are searched at once, by one half of the threads each: tensors have a leading axis of
2, and the scratch memory holds the coarse map and its transpose. A thread holds GROUP adjacent pixels of a line, which
all interpolate the same T cells.

Legend: S = SIDE pixels of a line, G = S / GROUP, C = max(u, v) cells of a line, L = 2 * EDGE_LINES.
"""

from __future__ import annotations

import triton.language as tl

from saga_fast.kernels._triton import jit

GROUP = tl.constexpr(4)  # pixels per thread: 16-byte loads of the weights
# A line is skipped only if its bound is this far below delta: see _numba.py.
SLACK = tl.constexpr(1e-5)
INFINITY_BITS = tl.constexpr(0x7F800000)  # float32 inf; non-negative floats are ordered like their bits


@jit
def _or(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return a | b


@jit
def _scale(coarse_P: tl.tensor, maps: tl.tensor, u: tl.constexpr, v: tl.constexpr, MINMAX: tl.constexpr) -> tl.tensor:
    """Store the map after ReLU, scaled to [0, 1], and its transpose in maps (2, C, C); return whether it is usable.

    A map is usable if it is finite and not constant. Cells past the map are 0.
    """
    p = tl.arange(0, coarse_P.shape[0])
    C: tl.constexpr = max(u, v)
    if u != v:
        PADDED: tl.constexpr = 2 * C * C
        for k in range(0, PADDED, 256):
            q = k + tl.arange(0, 256)
            tl.store(maps + q, tl.zeros([256], tl.float32), mask=q < PADDED)
        tl.debug_barrier()
    relu = tl.where(coarse_P > 0.0, coarse_P, 0.0)
    bits = tl.where(tl.abs(coarse_P) < float("inf"), relu.to(tl.int32, bitcast=True), INFINITY_BITS)
    inside = p < u * v
    extremes = tl.join(tl.where(inside, bits, 0), tl.where(inside, -bits, -INFINITY_BITS))
    high_bits, low_bits = tl.split(tl.max(extremes, axis=0))
    high, low = high_bits.to(tl.float32, bitcast=True), (-low_bits).to(tl.float32, bitcast=True)
    usable = (high_bits < INFINITY_BITS) & (high > low)
    offset = low if MINMAX else 0.0
    scaled = (relu - offset) / tl.where(usable, high - offset, 1.0)
    row = p // v
    tl.store(maps + (p + row * (C - v)), scaled, mask=inside)
    tl.store(maps + (C * C + row + (p - row * v) * C), scaled, mask=inside)
    tl.debug_barrier()
    return usable


@jit
def _interpolate(
    cells: tl.tensor, stride: tl.constexpr, weights: tl.tensor, SIDE: tl.constexpr, T: tl.constexpr
) -> tl.tensor:
    """Return sums of T cells, ``stride`` apart, times their weights, SIDE apart; pointers to the first of each."""
    total = tl.load(cells) * tl.load(weights)
    # Unrolled, so that loads overlap and weights that several sums share are loaded once.
    for t in tl.range(1, T, loop_unroll_factor=max(T - 1, 1) if T <= 8 else 1):
        total += tl.load(cells + t * stride) * tl.load(weights + t * SIDE)
    return total


@jit
def _bounds(
    cells: tl.tensor, last: tl.tensor, weights: tl.tensor, C: tl.constexpr, SIDE: tl.constexpr, T: tl.constexpr
) -> tl.tensor:
    """Return (2, G, GROUP): an upper bound of the pixels of each line; ``last`` is the index of a line's last cell.

    Between cells p1 and p2, the line is a Bezier curve with the control points p1, p1 + (p2 - p0) / 4,
    p2 - (p3 - p1) / 4 and p2. Cut in the middle, it is within the hull of p1, p1 + (p2 - p0) / 8,
    0.625 * (p1 + p2 - (p0 + p3) / 5), p2 - (p3 - p1) / 8 and p2.
    """
    p0 = _interpolate(cells, C, weights, SIDE, T)
    p1, p2 = p0, _interpolate(cells + tl.minimum(1, last), C, weights, SIDE, T)
    at_cells = p1 + 0.125 * tl.abs(p2 - p1)
    between = at_cells
    for j in tl.range(2, C + 1, loop_unroll_factor=max(C - 1, 1) if C <= 8 else 1):
        p3 = _interpolate(cells + tl.minimum(j, last), C, weights, SIDE, T)
        at_cells = tl.maximum(at_cells, p2 + 0.125 * tl.abs(p3 - p1))
        between = tl.maximum(between, p1 + p2 - 0.2 * (p0 + p3))
        p0, p1, p2 = p1, p2, p3
    return tl.maximum(at_cells, 0.625 * between)


@jit
def _store_lines(
    maps: tl.tensor,
    lines: tl.tensor,
    y: tl.tensor,
    windows: tl.tensor,
    starts: tl.tensor,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    SIDE: tl.constexpr,
    T: tl.constexpr,
) -> None:
    """Store lines (2, L, C): the maps interpolated along their first axis at the lines y (2, L, 1)."""
    L: tl.constexpr = y.shape[1]
    axis = tl.arange(0, 2)[:, None, None]
    k, j = tl.arange(0, L)[None, :, None], tl.arange(0, C_PAD)[None, None, :]
    start = tl.load(starts + axis * (SIDE // GROUP) + y.to(tl.uint32) // GROUP)
    cells = maps + (axis * C + start) * C + tl.minimum(j, C - 1)
    line = _interpolate(cells, C, windows + axis * T * SIDE + y, SIDE, T)
    tl.store(lines + (axis * L + k) * C + j, line, mask=j < C)
    tl.debug_barrier()


@jit
def _hits(
    lines: tl.tensor,
    weights: tl.tensor,
    threshold: tl.tensor,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    T: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> tl.tensor:
    """Return (2, G) int32: the bit of a line is set if it has a pixel of the group above the threshold."""
    bits = tl.zeros([2, SIDE // GROUP], tl.int32)
    for k in tl.static_range(2 * EDGE_LINES):
        heat = _interpolate(lines + k * C, 1, weights, SIDE, T)
        bits |= tl.where(tl.max(heat, axis=2) > threshold, 1 << (k if k < EDGE_LINES else k + 1), 0)
    return bits


@jit
def _exponent(x: tl.tensor) -> tl.tensor:
    """Return floor(log2(x)) of int32 x in [1, 2**24]; negative for 0."""
    return (x.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@jit
def _nearest(
    candidate: tl.tensor, line: tl.tensor, lower: tl.tensor, upper: tl.tensor, SIDE: tl.constexpr
) -> tl.tensor:
    """Return (2,) the first candidate from ``lower`` on, or SIDE, and (2,) the end of those before ``upper``, or 0."""
    after, before = line - lower[:, None, None], upper[:, None, None] - 1 - line
    after, before = tl.where(candidate & (after >= 0), SIDE - after, 0), tl.where(before >= 0, SIDE - before, 0)
    after, before = tl.split(tl.max(tl.max(tl.join(after, tl.where(candidate, before, 0)), axis=2), axis=1))
    return tl.minimum(lower + SIDE - after, SIDE), tl.maximum(upper - SIDE + before, 0)


@jit
def _edges(
    bound: tl.tensor,
    usable: tl.tensor,
    maps: tl.tensor,
    lines: tl.tensor,
    windows: tl.tensor,
    starts: tl.tensor,
    threshold: tl.tensor,
    C: tl.constexpr,
    C_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    T: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> tl.tensor:
    """Return (2,) the first and (2,) the last line with a pixel above the threshold and whether both axes have one.

    One reduction per tile gives all threads the state of the four searches, FIELD bits each, those of axis 1 above
    those of axis 0 and that of the last line above that of the first: the lines of the tile with a pixel above the
    threshold and, in bit EDGE_LINES, whether there are more candidates.
    """
    FIELD: tl.constexpr = EDGE_LINES + 1
    MORE: tl.constexpr = 1 << EDGE_LINES
    LAST: tl.constexpr = (MORE - 1) << FIELD
    axis, group = tl.arange(0, 2)[:, None, None], tl.arange(0, SIDE // GROUP)[None, :, None]
    line, k = group * GROUP + tl.arange(0, GROUP)[None, None, :], tl.arange(0, 2 * EDGE_LINES)[None, :, None]
    other = 1 - axis
    line_cells = lines + axis * 2 * EDGE_LINES * C + tl.load(starts + other * (SIDE // GROUP) + group)
    weights = windows + other * T * SIDE + line
    shift = tl.arange(0, 2) * 2 * FIELD
    candidate = (bound > threshold - SLACK) & (line < SIZE)
    first, last = tl.full([2], SIZE, tl.int32), tl.full([2], -1, tl.int32)
    begin, end = _nearest(candidate, line, tl.zeros([2], tl.int32), first, SIDE)
    first_candidate, end_of_candidates = begin, end
    hits, pending = 0, usable
    while pending:
        # One tile holds the lines from ``begin`` on, up to ``lower``, and those from ``upper`` on, up to ``end``.
        lower, upper = tl.minimum(begin + EDGE_LINES, SIDE), tl.maximum(end - EDGE_LINES, 0)
        start = lower - EDGE_LINES
        y = tl.where(k < EDGE_LINES, start[:, None, None] + k, upper[:, None, None] + k - EDGE_LINES)
        _store_lines(maps, lines, y, windows, starts, C, C_PAD, SIDE, T)
        more = tl.where(end_of_candidates > lower, MORE, 0) | tl.where(first_candidate < upper, MORE << FIELD, 0)
        state = _hits(line_cells, weights, threshold, C, SIDE, T, EDGE_LINES) | more[:, None]
        state = tl.reduce(state << shift[:, None], None, _or)

        hits |= state
        first_hits, last_hits = (state >> shift) & (MORE - 1), (state >> shift + FIELD) & (MORE - 1)
        first = tl.minimum(first, tl.where(first_hits > 0, start + _exponent(first_hits & -first_hits), SIZE))
        last = tl.maximum(last, tl.where(last_hits > 0, upper + _exponent(last_hits), -1))
        pending = False
        for search in tl.static_range(4):
            pending |= ((state >> search * FIELD) & (2 * MORE - 1)) == MORE
        if pending:
            tl.debug_barrier()  # small heatmaps are reduced without one, and the next tile overwrites ``lines``
            lower, upper = tl.where(first < SIZE, SIDE, lower), tl.where(last >= 0, 0, upper)
            begin, end = _nearest(candidate, line, lower, upper, SIDE)
    return first, last, (hits & LAST != 0) & (hits & (LAST << 2 * FIELD) != 0)


@jit
def store_box(
    coarse_P: tl.tensor,
    n: tl.tensor,
    scratch: tl.tensor,
    windows: tl.tensor,
    starts: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    u: tl.constexpr,
    v: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    T: tl.constexpr,
    MINMAX: tl.constexpr,
    C_PAD: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> None:
    """Store the box of image n: ReLU, scaling, separable bicubic, threshold, box.

    scratch is (2, C, C) + (2, L, C) float32. windows (2, T, S) are the bicubic weights of the cells that pixels
    interpolate, starts (2, G) int32 the first of these cells. S is a power of two: SIZE padded with zero weights, so
    that no load needs a mask.
    """
    C: tl.constexpr = max(u, v)
    usable = _scale(coarse_P, scratch, u, v, MINMAX)
    axis, group = tl.arange(0, 2)[:, None, None], tl.arange(0, SIDE // GROUP)[None, :, None]
    cells = scratch + (axis * C + tl.load(starts + axis * (SIDE // GROUP) + group)) * C
    weights = windows + axis * T * SIDE + group * GROUP + tl.arange(0, GROUP)[None, None, :]
    bound = _bounds(cells, tl.where(axis == 0, v - 1, u - 1), weights, C, SIDE, T)
    lines = scratch + 2 * C * C
    first, last, is_found = _edges(
        bound, usable, scratch, lines, windows, starts, delta, C, C_PAD, SIZE, SIDE, T, EDGE_LINES
    )
    # Rows and columns are summed in different orders. A pixel within rounding of delta may be above it on only one
    # axis: no box.
    edges = tl.join(tl.where(is_found, first, 0), tl.where(is_found, last + 1 - first, SIZE))
    # Correctly rounded float32 quotients of small integers equal the oracle's float64 quotients rounded to float32.
    side = tl.full([2, 2], SIZE, tl.float32)
    column = 1 - tl.arange(0, 2)[:, None] + 2 * tl.arange(0, 2)[None, :]
    tl.store(boxes + 4 * n + column, tl.div_rn(edges.to(tl.float32), side))
    tl.store(found + n, tl.where(is_found, 1, 0).to(tl.uint8))
