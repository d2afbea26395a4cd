"""attention_boxes on the GPU: the features read once, one launch for a large batch, two for a small one.

The channel sum (Eq. 3) is bound by memory. Contiguous features are read as one flat run: a step is a whole number of
channels, so a lane meets the same position at every step and keeps one sum, loads are 16 bytes wide although 7 * 7 = 49
is odd, and the lanes of one position are added at the end. Channels-last features are read in tiles of positions x
channels. Where the batch alone does not fill the GPU, several programs share an image's channels; their sums are stored
and a second kernel adds them in a fixed order, so that a result never depends on timing. (It may depend on the size of
the batch, in the last bits: that decides how many programs share an image.)
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from saga_fast.kernels._triton import FUSION, device_of, jit, multiprocessors, refuse_cpu
from saga_fast.kernels.attention_boxes._triton_box import store_box
from saga_fast.kernels.attention_boxes.reference import bicubic_matrix

STEP_BYTES = 16384  # features in flight per program: two programs per SM cover the latency of HBM3 (16 kB per SM)
FLAT_POSITIONS = 1024  # larger maps have rows long enough for tiles


@jit
def _sum_flat(
    features_CP: tl.tensor,
    weights_C: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    P: tl.constexpr,
    STEP: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    STEP_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
) -> tl.tensor:
    """(P_PAD,) sum_c weights[c] * features[c] over channels [first, last), positions contiguous.

    VEC neighbouring elements touch at most two channels (VEC <= P, or VEC = 1), so two weights serve them all.
    """
    start = tl.arange(0, LANES // VEC)[:, None] * VEC
    lane = tl.arange(0, VEC)[None, :]
    channel = start // P
    boundary = (channel + 1) * P - start
    sums = tl.zeros([LANES // VEC, VEC], tl.float32)
    for c in range(first, last, STEP):
        inside = (start + lane < STEP * P) & (start + lane < (last - c) * P)
        a = tl.load(features_CP + c * P + (start + lane), mask=inside, other=0.0, eviction_policy="evict_first")
        this = tl.load(weights_C + c + channel, mask=c + channel < last, other=0.0)
        following = tl.load(weights_C + c + channel + 1, mask=c + channel + 1 < last, other=0.0)
        w = tl.where(lane < boundary, this.to(tl.float32), following.to(tl.float32))
        sums += w * a.to(tl.float32)  # lanes past the step collect what nobody reads, lanes past the end 0 * 0
    step, p = tl.arange(0, STEP_PAD)[:, None], tl.arange(0, P_PAD)[None, :]
    valid = (step < STEP) & (p < P)
    index = tl.where(valid, step * P + p, 0)
    by_position = tl.gather(tl.reshape(sums, [LANES]), tl.reshape(index, [STEP_PAD * P_PAD]), 0)
    return tl.sum(tl.where(valid, tl.reshape(by_position, [STEP_PAD, P_PAD]), 0.0), axis=0)


@jit
def _sum_tiles(
    features: tl.tensor,
    weights_C: tl.tensor,
    first_position: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    P: tl.constexpr,
    stride_p: tl.tensor,
    stride_c: tl.tensor,
    P_PAD: tl.constexpr,
    C_TILE: tl.constexpr,
) -> tl.tensor:
    """(P_PAD,) sum_c weights[c] * features[c] over channels [first, last) of positions from first_position."""
    p, lane = first_position + tl.arange(0, P_PAD)[:, None], tl.arange(0, C_TILE)[None, :]
    sums = tl.zeros([P_PAD, C_TILE], tl.float32)
    for c in range(first, last, C_TILE):
        channel = c + lane
        a = tl.load(
            features + p * stride_p + channel * stride_c,
            mask=(p < P) & (channel < last),
            other=0.0,
            eviction_policy="evict_first",
        )
        sums += tl.load(weights_C + channel, mask=channel < last, other=0.0).to(tl.float32) * a.to(tl.float32)
    return tl.sum(sums, axis=1)


@jit
def _sum_kernel(
    features: tl.tensor,
    weights_BC: tl.tensor,
    sums: tl.tensor,
    scratch: tl.tensor,
    rows_t: tl.tensor,
    columns_t: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    C: tl.tensor,
    share: tl.tensor,
    stride_p: tl.tensor,
    stride_c: tl.tensor,
    u: tl.constexpr,
    v: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    MINMAX: tl.constexpr,
    FUSED: tl.constexpr,
    STEP: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    STEP_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
    UB: tl.constexpr,
    YB: tl.constexpr,
    XB: tl.constexpr,
) -> None:
    """Program (image n, share k of the channels, tile t of the positions): its channel sum, with FUSED the box too.

    sums (B, K, P) float32. VEC = 0 reads tiles of P_PAD positions x STEP channels, else flat runs.
    """
    n, k, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    P: tl.constexpr = u * v
    first = k * share
    last = tl.minimum(first + share, C)
    image, weights_C = features + n * C * P, weights_BC + n * C
    if VEC == 0:
        coarse_P = _sum_tiles(image, weights_C, t * P_PAD, first, last, P, stride_p, stride_c, P_PAD, STEP)
    else:
        coarse_P = _sum_flat(image, weights_C, first, last, P, STEP, VEC, LANES, STEP_PAD, P_PAD)
    if FUSED:
        own = scratch + n * u * (v + SIDE + 1)
        store_box(coarse_P, n, own, rows_t, columns_t, boxes, found, delta, u, v, SIZE, SIDE, MINMAX, P_PAD, UB, YB, XB)
    else:
        p = t * P_PAD + tl.arange(0, P_PAD)
        tl.store(sums + (n * tl.num_programs(1) + k) * P + p, coarse_P, mask=p < P)


@jit
def _box_kernel(
    sums: tl.tensor,
    scratch: tl.tensor,
    rows_t: tl.tensor,
    columns_t: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    shares: tl.tensor,
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
    """Program n: adds image n's partial sums (shares, P) in their order, then the box."""
    n = tl.program_id(0).to(tl.int64)
    P: tl.constexpr = u * v
    p = tl.arange(0, P_PAD)
    coarse_P = tl.zeros([P_PAD], tl.float32)
    for k in range(shares):
        coarse_P += tl.load(sums + (n * shares + k) * P + p, mask=p < P, other=0.0)
    own = scratch + n * u * (v + SIDE + 1)
    store_box(coarse_P, n, own, rows_t, columns_t, boxes, found, delta, u, v, SIZE, SIDE, MINMAX, P_PAD, UB, YB, XB)


@lru_cache(maxsize=16)
def _matrix_t(size: int, side: int, cells: int, device: torch.device) -> torch.Tensor:
    table = torch.zeros(cells, side)
    table[:, :size] = torch.from_numpy(bicubic_matrix(size, cells).T)
    return table.to(device)


def attention_boxes_triton(
    features: torch.Tensor, weights: torch.Tensor, delta: float, size: int, normalize: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`saga_fast.kernels.attention_boxes`."""
    refuse_cpu(features)
    batch, channels, u, v = features.shape
    positions = u * v
    last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    if not last:
        features = features.contiguous()  # a copy for strides that are neither
    weights = weights.contiguous()
    flat = not last and positions <= FLAT_POSITIONS
    lanes = STEP_BYTES // features.element_size()
    if flat:
        vector = 16 // features.element_size()
        vector = vector if vector <= positions else 1
        step = lanes // positions
        step = step // vector * vector if step > vector else step  # keeps every step 16-byte aligned
        p_tile = triton.next_power_of_2(positions)
    else:
        vector = 0
        p_tile = min(triton.next_power_of_2(positions), 64 if last else 1024)
        step = max(lanes // p_tile, 16)
    tiles = triton.cdiv(positions, p_tile)
    shares = max(1, min(2 * multiprocessors(features.device) // max(batch * tiles, 1), triton.cdiv(channels, step)))
    share = triton.cdiv(triton.cdiv(channels, shares), step) * step
    shares = triton.cdiv(channels, share)
    fused = shares == 1 and tiles == 1
    side = triton.cdiv(size, 256) * 256

    def new(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=features.device)

    boxes, found = new(batch, 4), torch.empty(batch, dtype=torch.uint8, device=features.device)
    sums = new(0) if fused else new(batch, shares, positions)
    scratch = new(batch, u * (v + side + 1))
    tables = (_matrix_t(size, side, u, features.device), _matrix_t(size, side, v, features.device))
    meta = {"u": u, "v": v, "SIZE": size, "SIDE": side, "MINMAX": normalize == "minmax"}
    blocks = {"UB": min(triton.next_power_of_2(u), 8), "YB": 16, "XB": 256}
    with device_of(features):
        _sum_kernel[(batch, shares, tiles)](
            features,
            weights,
            sums,
            scratch,
            *tables,
            boxes,
            found,
            delta,
            channels,
            share,
            *((channels, 1) if last else (1, positions)),
            **meta,
            FUSED=fused,
            STEP=step,
            VEC=vector,
            LANES=lanes,
            STEP_PAD=triton.next_power_of_2(step),
            P_PAD=p_tile,
            **blocks,
            num_warps=8,
            maxnreg=128,
            **FUSION,
        )
        if not fused:
            p_pad = triton.next_power_of_2(positions)
            _box_kernel[(batch,)](
                sums,
                scratch,
                *tables,
                boxes,
                found,
                delta,
                shares,
                **meta,
                P_PAD=p_pad,
                **blocks,
                num_warps=8,
                maxnreg=128,
                **FUSION,
            )
    return boxes, found.view(torch.bool)
