"""augment on the GPU: three launches, and as few passes over memory as the mean and the blur allow.

| pass | reads | writes | for |
|---|---|---|---|
| 1 mean | uint8 views | one sum per tile | contrast, whose pivot is the mean of everything before it |
| 2 pixels | uint8 views | result, or float16 planes blurred along x | every view; the planes for those with a blur |
| 3 columns | float16 planes | result | views with a blur: along y, solarize, normalise |

Nothing else touches memory. Pass 1 skips a view whose contrast is 1, pass 3 one without a blur, each by looking at its
parameters, so that the host never waits for the GPU. Sums are added in a fixed order. The float16 planes hold values in
[0, 1] to 1 / 4096, a sixteenth of a level; everything else is float32 in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels._triton import FUSION, device_of, jit, refuse_cpu, upload
from saga_fast.kernels.augment._triton_pixels import before_contrast, gray, jitter
from saga_fast.kernels.sample_photometrics import fields

FLIP = tl.constexpr(fields.FLIP)
CONTRAST = tl.constexpr(fields.CONTRAST)
GRAYSCALE = tl.constexpr(fields.GRAYSCALE)
BLUR_SIGMA = tl.constexpr(fields.BLUR_SIGMA)
BLUR_RADIUS = tl.constexpr(fields.BLUR_RADIUS)
SOLARIZE = tl.constexpr(fields.SOLARIZE)
FIELDS = tl.constexpr(len(fields.PHOTOMETRIC_FIELDS))
PIXELS = 2048  # per program of passes 1 and 2: 8 per thread
SQUARE = tl.constexpr(32)  # side of a tile of pass 3: reads are 16 bytes wide, and 224 and 96 are whole tiles


@jit
def _load(view: tl.tensor, i: tl.tensor) -> tl.tensor:
    """Pixels i of a view (SIDE * SIDE, 3) uint8 in [0, 1]."""
    scale = 1.0 / 255.0
    r, g, b = tl.load(view + 3 * i), tl.load(view + 3 * i + 1), tl.load(view + 3 * i + 2)
    return r.to(tl.float32) * scale, g.to(tl.float32) * scale, b.to(tl.float32) * scale


@jit
def _store(
    out: tl.tensor,
    i: tl.tensor,
    inside: tl.tensor,
    r: tl.tensor,
    g: tl.tensor,
    b: tl.tensor,
    threshold: tl.tensor,
    AFFINE: tl.constexpr,
    SIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
) -> None:
    """Solarize and normalise into one view of the result: AFFINE are three scales and three offsets."""
    pixel: tl.constexpr = 3 if CHANNELS_LAST else 1
    channel: tl.constexpr = 1 if CHANNELS_LAST else SIDE * SIDE
    r, g, b = (
        tl.where(r >= threshold, 1.0 - r, r),
        tl.where(g >= threshold, 1.0 - g, g),
        tl.where(b >= threshold, 1.0 - b, b),
    )
    kind = out.dtype.element_ty
    tl.store(out + pixel * i, (AFFINE[0] * r + AFFINE[3]).to(kind), mask=inside)
    tl.store(out + pixel * i + channel, (AFFINE[1] * g + AFFINE[4]).to(kind), mask=inside)
    tl.store(out + pixel * i + 2 * channel, (AFFINE[2] * b + AFFINE[5]).to(kind), mask=inside)


@jit
def _gaussian(p: tl.tensor) -> tl.tensor:
    """Radius (cut where 3.5 sigma end, 0.05 % of the weight), -1 / (2 sigma^2) and 1 / sum of the taps."""
    sigma = tl.load(p + BLUR_SIGMA)
    radius = tl.minimum(tl.load(p + BLUR_RADIUS), tl.ceil(3.5 * sigma)).to(tl.int32)
    exponent = -0.5 / (sigma * sigma)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += tl.exp(exponent * k * k)
    return radius, exponent, 1.0 / total


@jit
def _reflect(i: tl.tensor, SIDE: tl.constexpr) -> tl.tensor:
    """Borders mirrored without repeating the edge; further out than that, the first element: never outside memory."""
    i = tl.where(i < 0, -i, i)
    i = tl.where(i >= SIDE, 2 * (SIDE - 1) - i, i)
    return tl.where(i < 0, 0, i)


@jit
def _mean_kernel(
    views: tl.tensor, photometrics: tl.tensor, sums: tl.tensor, SIDE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Pass 1. sums (N, TILES): of each run of BLOCK pixels the grey values as they are when contrast's turn comes."""
    TILES: tl.constexpr = (SIDE * SIDE + BLOCK - 1) // BLOCK
    n, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    p = photometrics + n * FIELDS
    if tl.load(p + CONTRAST) != 1.0:
        i = tile * BLOCK + tl.arange(0, BLOCK)
        r, g, b = _load(views + n * SIDE * SIDE * 3, tl.minimum(i, SIDE * SIDE - 1))
        luma = tl.where(i < SIDE * SIDE, before_contrast(r, g, b, p), 0.0)
        tl.store(sums + tl.program_id(0), tl.sum(luma, axis=0))


@jit
def _pixels_kernel(
    views: tl.tensor,
    photometrics: tl.tensor,
    sums: tl.tensor,
    planes: tl.tensor,
    out: tl.tensor,
    AFFINE: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    PLAIN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Pass 2, ROWS rows per program. sums (N, PARTS), planes (N, 3, SIDE, SIDE) float16; PLAIN normalises only."""
    TILES: tl.constexpr = (SIDE + ROWS - 1) // ROWS
    n, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    y, x = tile * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (y < SIDE) & (x < SIDE)
    # Lanes outside the view read its last pixels. The minimum also hides from Triton that columns are neighbours: it
    # would give each thread 8 of them for 16-byte stores, and scatter the reads 3 bytes apart and the blur's.
    start, x = tl.minimum(y, SIDE - 1) * SIDE, tl.minimum(x, SIDE - 1)
    i = start + x
    view, result = views + n * SIDE * SIDE * 3, out + n * SIDE * SIDE * 3
    if PLAIN:
        r, g, b = _load(view, i)
        _store(result, i, inside, r, g, b, 2.0, AFFINE, SIDE, CHANNELS_LAST)
    else:
        p = photometrics + n * FIELDS
        r, g, b = _load(view, start + tl.where(tl.load(p + FLIP) != 0.0, SIDE - 1 - x, x))
        part = tl.arange(0, PARTS_PAD)
        mean = tl.sum(tl.load(sums + n * PARTS + part, mask=part < PARTS, other=0.0), axis=0) / (SIDE * SIDE)
        grayscale = tl.load(p + GRAYSCALE)
        if grayscale == 2.0:
            luma = gray(r, g, b)
            r, g, b = luma, luma, luma
        r, g, b = jitter(r, g, b, p, 4, mean)
        if grayscale == 1.0:
            luma = gray(r, g, b)
            r, g, b = luma, luma, luma
        if tl.load(p + BLUR_SIGMA) > 0.0:
            # The rows go through the cache to the program's other threads, and back to the same place.
            red = planes + n * SIDE * SIDE * 3
            green, blue = red + SIDE * SIDE, red + 2 * SIDE * SIDE
            tl.store(red + i, r.to(tl.float16), mask=inside)
            tl.store(green + i, g.to(tl.float16), mask=inside)
            tl.store(blue + i, b.to(tl.float16), mask=inside)
            tl.debug_barrier()
            radius, exponent, norm = _gaussian(p)
            r, g, b = tl.zeros_like(r), tl.zeros_like(r), tl.zeros_like(r)
            for k in range(-radius, radius + 1):
                w = tl.exp(exponent * k * k) * norm
                at = start + _reflect(x + k, SIDE)
                r += w * tl.load(red + at).to(tl.float32)
                g += w * tl.load(green + at).to(tl.float32)
                b += w * tl.load(blue + at).to(tl.float32)
            tl.debug_barrier()
            tl.store(red + i, r.to(tl.float16), mask=inside)
            tl.store(green + i, g.to(tl.float16), mask=inside)
            tl.store(blue + i, b.to(tl.float16), mask=inside)
        else:
            threshold = tl.load(p + SOLARIZE)
            _store(result, i, inside, r, g, b, threshold, AFFINE, SIDE, CHANNELS_LAST)


@jit
def _columns_kernel(
    photometrics: tl.tensor,
    planes: tl.tensor,
    out: tl.tensor,
    AFFINE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SIDE: tl.constexpr,
) -> None:
    """Pass 3, one square tile per program. planes (N, 3, SIDE, SIDE) float16, blurred along x."""
    TILES: tl.constexpr = (SIDE + SQUARE - 1) // SQUARE
    n, tile = (tl.program_id(0) // (TILES * TILES)).to(tl.int64), tl.program_id(0) % (TILES * TILES)
    p = photometrics + n * FIELDS
    if tl.load(p + BLUR_SIGMA) > 0.0:
        y = tile // TILES * SQUARE + tl.arange(0, SQUARE)[:, None]
        x = tile % TILES * SQUARE + tl.arange(0, SQUARE)[None, :]
        red = planes + n * SIDE * SIDE * 3
        green, blue = red + SIDE * SIDE, red + 2 * SIDE * SIDE
        radius, exponent, norm = _gaussian(p)
        r = tl.zeros([SQUARE, SQUARE], tl.float32)
        g, b = r, r
        for k in range(-radius, radius + 1):
            w = tl.exp(exponent * k * k) * norm
            at = _reflect(y + k, SIDE) * SIDE + x
            r += w * tl.load(red + at, mask=x < SIDE, other=0.0).to(tl.float32)
            g += w * tl.load(green + at, mask=x < SIDE, other=0.0).to(tl.float32)
            b += w * tl.load(blue + at, mask=x < SIDE, other=0.0).to(tl.float32)
        inside, i = (y < SIDE) & (x < SIDE), y * SIDE + x
        threshold = tl.load(p + SOLARIZE)
        _store(out + n * SIDE * SIDE * 3, i, inside, r, g, b, threshold, AFFINE, SIDE, CHANNELS_LAST)


def finish(
    views: torch.Tensor,
    photometrics: torch.Tensor | None,
    sums: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Passes 2 and 3: views (B, V, S, S, 3), photometrics (B, V, P) on their device, sums (B * V, parts)."""
    batch, num_views, side = views.shape[:3]
    count = batch * num_views
    shape = (count, side, side, 3) if channels_last else (count, 3, side, side)
    out = torch.empty(shape, dtype=dtype, device=views.device)
    blurred = 0 if photometrics is None else count
    planes = torch.empty((blurred, 3, side, side), dtype=torch.float16, device=views.device)
    parameters = views if photometrics is None else photometrics
    scale = [1.0 / s for s in std]
    affine = (*scale, *(-m * s for m, s in zip(mean, scale, strict=True)))
    columns = triton.next_power_of_2(side)
    rows = max(1, PIXELS // columns)
    row_tiles, squares = triton.cdiv(side, rows), triton.cdiv(side, SQUARE.value) ** 2
    parts = {"PARTS": sums.shape[1], "PARTS_PAD": triton.next_power_of_2(max(sums.shape[1], 1))}
    layout = {"AFFINE": affine, "CHANNELS_LAST": channels_last, "SIDE": side, **FUSION}
    tile = {"PLAIN": photometrics is None, "ROWS": rows, "COLUMNS": columns}
    with device_of(views):
        _pixels_kernel[(count * row_tiles,)](
            views, parameters, sums, planes, out, **parts, **tile, **layout, num_warps=8
        )
        if photometrics is not None:
            _columns_kernel[(count * squares,)](parameters, planes, out, **layout, num_warps=4)
    out = out.view(batch, num_views, *shape[1:])
    return out.permute(0, 1, 4, 2, 3) if channels_last else out


def augment_triton(
    views: torch.Tensor,
    photometrics: Array | None,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """See :func:`saga_fast.kernels.augment`."""
    refuse_cpu(views)
    batch, num_views, side = views.shape[:3]
    views = views.contiguous()
    tiles = triton.cdiv(side * side, PIXELS)
    sums = torch.empty((batch * num_views, tiles), dtype=torch.float32, device=views.device)
    if photometrics is None:
        return finish(views, None, sums, mean, std, channels_last, dtype)
    parameters = upload(photometrics, views, torch.float32)
    with device_of(views):
        _mean_kernel[(batch * num_views * tiles,)](
            views, parameters, sums, SIDE=side, BLOCK=PIXELS, num_warps=8, **FUSION
        )
    return finish(views, parameters, sums, mean, std, channels_last, dtype)
