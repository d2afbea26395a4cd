"""Second half of attention_boxes on the GPU: from one image's coarse map in registers to its box (Eq. 4).

Compute-bound: size^2 * taps multiply-adds per image. Only one tile of the heatmap exists at a time, in registers. A
block of rows is skipped where the bound sum_i |row weight| * max|upsampled row i| is not above delta.
"""

from __future__ import annotations

import triton.language as tl

from saga_fast.kernels._triton import jit


@jit
def _first_tap(y0: tl.tensor, u: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr) -> tl.tensor:
    """Return the first of the TAPS coarse rows that heatmap rows y0 to y0 + YB - 1 depend on."""
    # floor(centre) = ((2 y + 1) u + SIZE) // (2 SIZE) - 1; the taps run from one before it to two after it.
    return tl.minimum(tl.maximum(((2 * y0 + 1) * u + SIZE) // (2 * SIZE) - 2, 0), u - TAPS)


@jit
def _bound(
    largest: tl.tensor,
    rows_t: tl.tensor,
    y0: tl.tensor,
    u: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    YB: tl.constexpr,
) -> tl.tensor:
    """Return an upper bound of the block of rows from y0: max_y sum_i |w[y, i]| * largest[i]."""
    y = y0 + tl.arange(0, YB)
    first = _first_tap(y0, u, SIZE, TAPS)
    bound = tl.zeros([YB], tl.float32)
    for i in tl.range(0, TAPS, loop_unroll_factor=TAPS if TAPS <= 6 else 1):
        bound += tl.abs(tl.load(rows_t + (first + i) * SIDE + y)) * tl.load(largest + first + i)
    return tl.max(bound, axis=0)


@jit
def _heat(
    upsampled: tl.tensor,
    rows_t: tl.tensor,
    y0: tl.tensor,
    x: tl.tensor,
    u: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    YB: tl.constexpr,
    XB: tl.constexpr,
) -> tl.tensor:
    """Return a (YB, XB) tile of the heatmap: rows from y0, columns x; 0, never above delta, outside it."""
    y = y0 + tl.arange(0, YB)
    first = _first_tap(y0, u, SIZE, TAPS)
    heat = tl.zeros([YB, XB], tl.float32)
    for i in tl.range(0, TAPS, loop_unroll_factor=TAPS if TAPS <= 6 else 1):
        row = (first + i) * SIDE
        heat += tl.load(rows_t + row + y)[:, None] * tl.load(upsampled + row + x)[None, :]
    return heat


@jit
def store_box(
    coarse_P: tl.tensor,
    n: tl.tensor,
    scratch: tl.tensor,
    rows_t: tl.tensor,
    columns_t: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    u: tl.constexpr,
    v: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    MINMAX: tl.constexpr,
    P_PAD: tl.constexpr,
    UB: tl.constexpr,
    YB: tl.constexpr,
    XB: tl.constexpr,
) -> None:
    """Store the box of image n: ReLU, scaling, separable bicubic, threshold, box.

    scratch (u * (v + SIDE + 1),) float32 holds the scaled map, its upsampled rows, and the largest magnitude of each
    row. rows_t (u, SIDE) and columns_t (v, SIDE) are the transposed bicubic matrices. SIDE is SIZE padded to whole
    blocks with zero weights, so that no load needs a mask.
    """
    P: tl.constexpr = u * v
    p = tl.arange(0, P_PAD)
    non_finite = tl.max(tl.where((p < P) & ~(tl.abs(coarse_P) < float("inf")), 1, 0), axis=0)
    relu = tl.where(coarse_P > 0.0, coarse_P, 0.0)
    high = tl.max(tl.where(p < P, relu, 0.0), axis=0)
    low = tl.min(tl.where(p < P, relu, float("inf")), axis=0)
    usable = (non_finite == 0) & (high > low)
    offset = low if MINMAX else 0.0
    span = tl.where(usable, high - offset, 1.0)
    scaled = scratch
    upsampled = scratch + P
    largest = upsampled + u * SIDE
    tl.store(scaled + p, tl.div_rn(relu - offset, span), mask=p < P)
    threshold = tl.where(usable, delta, float("inf"))  # no pixel of an unusable map is above it
    tl.debug_barrier()

    for i0 in range(0, u, UB):
        i = i0 + tl.arange(0, UB)
        bound = tl.zeros([UB], tl.float32)
        for x0 in range(0, SIDE, XB):
            x = x0 + tl.arange(0, XB)
            line = tl.zeros([UB, XB], tl.float32)
            for j in range(v):
                m = tl.load(scaled + i * v + j, mask=i < u, other=0.0)
                line += m[:, None] * tl.load(columns_t + j * SIDE + x)[None, :]
            tl.store(upsampled + i[:, None] * SIDE + x[None, :], line, mask=(i < u)[:, None])
            bound = tl.maximum(bound, tl.max(tl.abs(line), axis=1))
        tl.store(largest + i, bound, mask=i < u)
    tl.debug_barrier()

    # left and right need all blocks; top and bottom need only the first and the last block with a pixel above the
    # threshold. Computing those two again costs less than a reduction over x in every block.
    BLOCKS: tl.constexpr = SIDE // YB
    # Coarse rows that are not a tap of a pixel have weight 0. A loop over few taps is unrolled, so that loads overlap.
    TAPS: tl.constexpr = min(u, (YB - 1) * u // SIZE + 5)
    left, right, first_block, last_block = SIZE, -1, BLOCKS, -1
    for x0 in range(0, SIDE, XB):
        x = x0 + tl.arange(0, XB)
        first_X, last_X = tl.full([XB], BLOCKS, tl.int32), tl.full([XB], -1, tl.int32)
        for block in range((SIZE + YB - 1) // YB):
            if _bound(largest, rows_t, block * YB, u, SIZE, SIDE, TAPS, YB) > threshold:
                heat = _heat(upsampled, rows_t, block * YB, x, u, SIZE, SIDE, TAPS, YB, XB)
                hit = tl.max(heat, axis=0) > threshold
                first_X = tl.minimum(first_X, tl.where(hit, block, BLOCKS))
                last_X = tl.maximum(last_X, tl.where(hit, block, -1))
        left = tl.minimum(left, tl.min(tl.where(last_X >= 0, x, SIZE), axis=0))
        right = tl.maximum(right, tl.max(tl.where(last_X >= 0, x, -1), axis=0))
        first_block = tl.minimum(first_block, tl.min(first_X, axis=0))
        last_block = tl.maximum(last_block, tl.max(last_X, axis=0))
    top, bottom = SIZE, -1
    if right >= 0:
        y = tl.arange(0, YB)[:, None]
        for x0 in range(0, SIDE, XB):
            x = x0 + tl.arange(0, XB)
            hit = _heat(upsampled, rows_t, first_block * YB, x, u, SIZE, SIDE, TAPS, YB, XB) > threshold
            top = tl.minimum(top, first_block * YB + tl.min(tl.min(tl.where(hit, y, SIZE), axis=0), axis=0))
            hit = _heat(upsampled, rows_t, last_block * YB, x, u, SIZE, SIDE, TAPS, YB, XB) > threshold
            bottom = tl.maximum(bottom, last_block * YB + tl.max(tl.max(tl.where(hit, y, -SIZE), axis=0), axis=0))

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
