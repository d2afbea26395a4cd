"""attention_boxes on the GPU: one launch for a large batch, two for a small one.

The features are read once. The channel sum (Eq. 3) is memory-bound. Contiguous features are read as one flat run in
steps of whole channels: a lane holds the same position at every step and keeps one sum, and loads are 16 bytes wide
although 7 * 7 = 49 is odd. The sums of lanes with the same position are added at the end. Channels-last features are
read in tiles of positions x channels.

If the batch alone does not fill the GPU, an image's channels are split among several programs. Their sums are stored,
and a second kernel adds them in a fixed order, so a result never depends on timing. The last bits may depend on the
batch size, which decides the number of splits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from saga_fast.kernels._triton import FUSION, device_of, jit, multiprocessors, require_gpu
from saga_fast.kernels.attention_boxes._triton_box import GROUP, store_box
from saga_fast.kernels.attention_boxes.reference import bicubic_matrix

WARPS = 4  # per program
PROGRAMS = 2  # per SM, which the channels of an image are split to reach
STEP_BYTES = 8192  # of features per step of a program
STAGES = tl.constexpr(3)  # steps in flight
EDGE_LINES = 4  # lines of the heatmap per tile and side. With 2 a batch of 1024 takes 1.19 times as long on an H200
FLAT_POSITIONS = 1024  # largest map read as a flat run; larger maps have rows long enough for tiles


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
    """Return (P_PAD,) sum_c weights[c] * features[c] over channels [first, last) of contiguous positions.

    VEC adjacent elements belong to at most two channels (VEC <= P, or VEC = 1), so two weights per vector suffice.
    """
    start = tl.arange(0, LANES // VEC)[:, None] * VEC
    lane = tl.arange(0, VEC)[None, :]
    channel = start // P
    boundary = (channel + 1) * P - start
    sums = tl.zeros([LANES // VEC, VEC], tl.float32)
    for c in tl.range(first, last, STEP, num_stages=STAGES):
        inside = (start + lane < STEP * P) & (start + lane < (last - c) * P)
        a = tl.load(features_CP + c * P + (start + lane), mask=inside, other=0.0, eviction_policy="evict_first")
        w_this = tl.load(weights_C + c + channel, mask=c + channel < last, other=0.0)
        w_next = tl.load(weights_C + c + channel + 1, mask=c + channel + 1 < last, other=0.0)
        w = tl.where(lane < boundary, w_this.to(tl.float32), w_next.to(tl.float32))
        # Lanes past the step are dropped by `valid` below; lanes past the last channel add 0 * 0.
        sums += w * a.to(tl.float32)
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
    """Return (P_PAD,) sum_c weights[c] * features[c] over channels [first, last), from first_position on."""
    p, lane = first_position + tl.arange(0, P_PAD)[:, None], tl.arange(0, C_TILE)[None, :]
    sums = tl.zeros([P_PAD, C_TILE], tl.float32)
    for c in tl.range(first, last, C_TILE, num_stages=STAGES):
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
    windows: tl.tensor,
    starts: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    C: tl.tensor,
    split_channels: tl.tensor,
    stride_p: tl.tensor,
    stride_c: tl.tensor,
    u: tl.constexpr,
    v: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    T: tl.constexpr,
    C_PAD: tl.constexpr,
    SCRATCH: tl.constexpr,
    MINMAX: tl.constexpr,
    FUSED: tl.constexpr,
    STEP: tl.constexpr,
    VEC: tl.constexpr,
    LANES: tl.constexpr,
    STEP_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> None:
    """Sum the channels of split k for tile t of the positions of image n; FUSED also stores the box.

    Grid (B, splits, tiles); sums (B, splits, P) float32. VEC = 0 reads tiles of P_PAD positions x STEP channels,
    otherwise flat runs.
    """
    n, k, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    P: tl.constexpr = u * v
    first = k * split_channels
    last = tl.minimum(first + split_channels, C)
    image, weights_C = features + n * C * P, weights_BC + n * C
    if VEC == 0:
        coarse_P = _sum_tiles(image, weights_C, t * P_PAD, first, last, P, stride_p, stride_c, P_PAD, STEP)
    else:
        coarse_P = _sum_flat(image, weights_C, first, last, P, STEP, VEC, LANES, STEP_PAD, P_PAD)
    if FUSED:
        store_box(
            coarse_P,
            n,
            scratch + n * SCRATCH,
            windows,
            starts,
            boxes,
            found,
            delta,
            u,
            v,
            SIZE,
            SIDE,
            T,
            MINMAX,
            C_PAD,
            EDGE_LINES,
        )
    else:
        p = t * P_PAD + tl.arange(0, P_PAD)
        tl.store(sums + (n * tl.num_programs(1) + k) * P + p, coarse_P, mask=p < P)


@jit
def _box_kernel(
    sums: tl.tensor,
    scratch: tl.tensor,
    windows: tl.tensor,
    starts: tl.tensor,
    boxes: tl.tensor,
    found: tl.tensor,
    delta: tl.tensor,
    splits: tl.tensor,
    u: tl.constexpr,
    v: tl.constexpr,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    T: tl.constexpr,
    C_PAD: tl.constexpr,
    SCRATCH: tl.constexpr,
    MINMAX: tl.constexpr,
    P_PAD: tl.constexpr,
    EDGE_LINES: tl.constexpr,
) -> None:
    """Add the partial sums (splits, P) of image n in a fixed order and store its box; grid (B,)."""
    n = tl.program_id(0).to(tl.int64)
    P: tl.constexpr = u * v
    p = tl.arange(0, P_PAD)
    coarse_P = tl.zeros([P_PAD], tl.float32)
    for k in range(splits):
        coarse_P += tl.load(sums + (n * splits + k) * P + p, mask=p < P, other=0.0)
    store_box(
        coarse_P,
        n,
        scratch + n * SCRATCH,
        windows,
        starts,
        boxes,
        found,
        delta,
        u,
        v,
        SIZE,
        SIDE,
        T,
        MINMAX,
        C_PAD,
        EDGE_LINES,
    )


class _Split(NamedTuple):
    """How the programs of ``_sum_kernel`` divide the features of a batch."""

    lanes: int  # elements per program and step
    vector: int  # elements per load of a flat run; 0 for tiles
    step: int  # channels per step
    p_tile: int  # positions per program, a power of two
    tiles: int  # programs along the positions of an image
    splits: int  # programs along the channels of an image
    split_channels: int  # channels per program


def _split(features: torch.Tensor, channels_last: bool) -> _Split:
    """Choose the division for features (B, C, u, v)."""
    batch, channels, u, v = features.shape
    positions = u * v
    lanes = STEP_BYTES // features.element_size()
    if not channels_last and positions <= FLAT_POSITIONS:
        vector = 16 // features.element_size()
        vector = vector if vector <= positions else 1
        step = lanes // positions
        step = step // vector * vector if step > vector else step  # keeps every step 16-byte aligned
        p_tile = triton.next_power_of_2(positions)
    else:
        vector = 0
        p_tile = min(triton.next_power_of_2(positions), 64 if channels_last else 1024)
        step = max(lanes // p_tile, 16)
    tiles = triton.cdiv(positions, p_tile)
    splits = max(
        1, min(PROGRAMS * multiprocessors(features.device) // max(batch * tiles, 1), triton.cdiv(channels, step))
    )
    split_channels = triton.cdiv(triton.cdiv(channels, splits), step) * step
    return _Split(lanes, vector, step, p_tile, tiles, triton.cdiv(channels, split_channels), split_channels)


class _Windows(NamedTuple):
    """Bicubic upsampling of rows (index 0) and columns (index 1); the pixels of a group share a window of cells."""

    weights: torch.Tensor  # (2, T, side) float32, zero past the heatmap
    starts: torch.Tensor  # (2, side / GROUP) int32: first cell of each window


@lru_cache(maxsize=16)
def _windows(size: int, side: int, u: int, v: int, device: torch.device) -> _Windows:
    """Compute the windows of heatmaps of ``size`` pixels padded to ``side``, from maps of u x v cells."""
    group, cells = GROUP.value, max(u, v)
    matrices = np.zeros((2, side, cells))
    matrices[0, :size, :u], matrices[1, :size, :v] = bicubic_matrix(size, u), bicubic_matrix(size, v)
    used = (matrices != 0.0).reshape(2, side // group, group, cells).any(2)
    starts = used.argmax(2)
    taps = int((cells - used[:, :, ::-1].argmax(2) - starts)[used.any(2)].max())
    starts = np.minimum(starts, cells - taps)
    window = np.repeat(starts, group, axis=1)[:, None] + np.arange(taps)[:, None]
    weights = np.take_along_axis(matrices.transpose(0, 2, 1), window, 1)
    return _Windows(torch.from_numpy(weights).float().to(device), torch.from_numpy(starts).int().to(device))


def attention_boxes_triton(
    features: torch.Tensor, weights: torch.Tensor, delta: float, size: int, normalize: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`saga_fast.kernels.attention_boxes`."""
    require_gpu(features)
    batch, channels, u, v = features.shape
    positions, device = u * v, features.device
    channels_last = features.stride(1) == 1 and not features.is_contiguous()
    # Copies any other strides. A vision transformer's patch tokens are channels_last but for those before them.
    features = features.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weights = weights.contiguous()
    split = _split(features, channels_last)
    fused = split.splits == 1 and split.tiles == 1
    side = max(triton.next_power_of_2(size), 2 * GROUP.value)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    boxes, found = empty(batch, 4), torch.empty(batch, dtype=torch.uint8, device=device)
    sums = empty(0) if fused else empty(batch, split.splits, positions)
    cells = max(u, v)
    scratch = empty(batch, 2 * cells * (cells + 2 * EDGE_LINES))
    windows, starts = _windows(size, side, u, v, device)
    box_arguments = (scratch, windows, starts, boxes, found, delta)
    strides = (channels, 1) if channels_last else (1, positions)
    options = {"u": u, "v": v, "SIZE": size, "SIDE": side, "T": windows.shape[1], "MINMAX": normalize == "minmax"}
    # With 16 or more cells, one half of the threads has each axis in all steps, and nothing moves between threads.
    options |= {"C_PAD": max(triton.next_power_of_2(cells), 16), "SCRATCH": scratch.shape[1]}
    options |= {"EDGE_LINES": EDGE_LINES, "num_warps": WARPS, **FUSION}
    with device_of(features):
        _sum_kernel[(batch, split.splits, split.tiles)](
            features,
            weights,
            sums,
            *box_arguments,
            channels,
            split.split_channels,
            *strides,
            FUSED=fused,
            STEP=split.step,
            VEC=split.vector,
            LANES=split.lanes,
            STEP_PAD=triton.next_power_of_2(split.step),
            P_PAD=split.p_tile,
            **options,
        )
        if not fused:
            _box_kernel[(batch,)](
                sums, *box_arguments, split.splits, P_PAD=triton.next_power_of_2(positions), **options
            )
    return boxes, found.view(torch.bool)
