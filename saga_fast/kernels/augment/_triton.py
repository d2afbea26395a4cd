"""augment on the GPU: three launches, the fewest passes over memory that the mean and the blur allow.

| pass | reads | writes | for |
|---|---|---|---|
| 1 mean | uint8 views | one sum per tile | contrast, which pivots on the mean grey value before it |
| 2 pixels | uint8 views | result, or float16 planes blurred along x | every view; the planes for those with a blur |
| 3 columns | float16 planes | result | views with a blur: along y, solarize, normalise |

Pass 1 skips views with contrast 1, and pass 3 views without blur. The kernels read this from the parameters, so the
host never waits for the GPU. Sums are added in a fixed order. The float16 planes hold values in [0, 1] to 1 / 4096, a
sixteenth of a level; everything else is float32 in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels._triton import FUSION, device_of, jit, require_gpu, upload
from saga_fast.kernels.augment._triton_pixels import before_contrast, gray, jitter
from saga_fast.kernels.sample_photometrics import fields

FLIP = tl.constexpr(fields.FLIP)
CONTRAST = tl.constexpr(fields.CONTRAST)
GRAYSCALE = tl.constexpr(fields.GRAYSCALE)
BLUR_SIGMA = tl.constexpr(fields.BLUR_SIGMA)
BLUR_RADIUS = tl.constexpr(fields.BLUR_RADIUS)
SOLARIZE = tl.constexpr(fields.SOLARIZE)
FIELDS = tl.constexpr(len(fields.PHOTOMETRIC_FIELDS))
PIXELS = 2048  # per program in pass 1: 8 per thread
ROW_PIXELS = 1024  # per program in pass 2: 8 per thread of 4 warps; 2048 and 8 warps spill 8 bytes on sm_80
SQUARE = tl.constexpr(32)  # tile side in pass 3: reads are 16 bytes wide, and 224 and 96 are whole numbers of tiles


@jit
def _load(view: tl.tensor, i: tl.tensor) -> tl.tensor:
    """Load pixels i of a view (SIDE * SIDE, 3) uint8 as r, g, b in [0, 1]."""
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
    """Solarize, normalise and store pixels i of one view; AFFINE holds three scales, then three offsets."""
    pixel: tl.constexpr = 3 if CHANNELS_LAST else 1
    channel: tl.constexpr = 1 if CHANNELS_LAST else SIDE * SIDE
    r, g, b = (
        tl.where(r >= threshold, 1.0 - r, r),
        tl.where(g >= threshold, 1.0 - g, g),
        tl.where(b >= threshold, 1.0 - b, b),
    )
    dtype = out.dtype.element_ty
    tl.store(out + pixel * i, (AFFINE[0] * r + AFFINE[3]).to(dtype), mask=inside)
    tl.store(out + pixel * i + channel, (AFFINE[1] * g + AFFINE[4]).to(dtype), mask=inside)
    tl.store(out + pixel * i + 2 * channel, (AFFINE[2] * b + AFFINE[5]).to(dtype), mask=inside)


@jit
def _gaussian(p: tl.tensor) -> tl.tensor:
    """Return radius, -1 / (2 sigma^2) and 1 / sum of taps. Cuts off at 3.5 sigma: 0.05 % of the weight."""
    sigma = tl.load(p + BLUR_SIGMA)
    radius = tl.minimum(tl.load(p + BLUR_RADIUS), tl.ceil(3.5 * sigma)).to(tl.int32)
    exponent = -0.5 / (sigma * sigma)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += tl.exp(exponent * k * k)
    return radius, exponent, 1.0 / total


@jit
def _reflect(i: tl.tensor, SIDE: tl.constexpr) -> tl.tensor:
    """Reflect index i at the borders without repeating the edge.

    An index further out becomes 0, so a blur wider than the view reads no memory outside it.
    """
    i = tl.where(i < 0, -i, i)
    i = tl.where(i >= SIDE, 2 * (SIDE - 1) - i, i)
    return tl.where(i < 0, 0, i)


@jit
def _mean_kernel(
    views: tl.tensor, photometrics: tl.tensor, sums: tl.tensor, SIDE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Pass 1: sum the grey values before contrast over each run of BLOCK pixels, into sums (N, TILES)."""
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
    """Pass 2, ROWS rows per program: all steps, but of the blur only the one along x.

    sums (N, PARTS), planes (N, 3, SIDE, SIDE) float16. PLAIN only normalises.
    """
    TILES: tl.constexpr = (SIDE + ROWS - 1) // ROWS
    n, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    y, x = tile * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside = (y < SIDE) & (x < SIDE)
    # Lanes outside the view read its last pixels. The minimum also hides from Triton that columns are adjacent: it
    # would give each thread 8 adjacent columns for 16-byte stores, which scatters the uint8 reads and the blur's reads.
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
            # The program's threads exchange rows through the cache; the blurred rows overwrite them.
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
                source = start + _reflect(x + k, SIDE)
                r += w * tl.load(red + source).to(tl.float32)
                g += w * tl.load(green + source).to(tl.float32)
                b += w * tl.load(blue + source).to(tl.float32)
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
    """Pass 3, one square tile per program: blur along y, solarize, normalise and store.

    planes (N, 3, SIDE, SIDE) float16, blurred along x.
    """
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
            source = _reflect(y + k, SIDE) * SIDE + x
            r += w * tl.load(red + source, mask=x < SIDE, other=0.0).to(tl.float32)
            g += w * tl.load(green + source, mask=x < SIDE, other=0.0).to(tl.float32)
            b += w * tl.load(blue + source, mask=x < SIDE, other=0.0).to(tl.float32)
        inside, i = (y < SIDE) & (x < SIDE), y * SIDE + x
        threshold = tl.load(p + SOLARIZE)
        _store(out + n * SIDE * SIDE * 3, i, inside, r, g, b, threshold, AFFINE, SIDE, CHANNELS_LAST)


def run_passes_2_and_3(
    views: torch.Tensor,
    photometrics: torch.Tensor | None,
    sums: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Launch passes 2 and 3 on views (B, V, S, S, 3), photometrics (B, V, P) and sums (B * V, parts)."""
    batch, num_views, side = views.shape[:3]
    count = batch * num_views
    shape = (count, side, side, 3) if channels_last else (count, 3, side, side)
    out = torch.empty(shape, dtype=dtype, device=views.device)
    plane_count = 0 if photometrics is None else count
    planes = torch.empty((plane_count, 3, side, side), dtype=torch.float16, device=views.device)
    parameters = views if photometrics is None else photometrics  # PLAIN does not read them
    scale = [1.0 / s for s in std]
    affine = (*scale, *(-m * s for m, s in zip(mean, scale, strict=True)))
    columns = triton.next_power_of_2(side)
    rows = max(1, ROW_PIXELS // columns)
    row_tiles, squares = triton.cdiv(side, rows), triton.cdiv(side, SQUARE.value) ** 2
    parts = {"PARTS": sums.shape[1], "PARTS_PAD": triton.next_power_of_2(max(sums.shape[1], 1))}
    layout = {"AFFINE": affine, "CHANNELS_LAST": channels_last, "SIDE": side, **FUSION}
    tile = {"PLAIN": photometrics is None, "ROWS": rows, "COLUMNS": columns}
    with device_of(views):
        _pixels_kernel[(count * row_tiles,)](
            views, parameters, sums, planes, out, **parts, **tile, **layout, num_warps=4
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
    require_gpu(views)
    batch, num_views, side = views.shape[:3]
    views = views.contiguous()
    tiles = triton.cdiv(side * side, PIXELS)
    sums = torch.empty((batch * num_views, tiles), dtype=torch.float32, device=views.device)
    if photometrics is None:
        return run_passes_2_and_3(views, None, sums, mean, std, channels_last, dtype)
    parameters = upload(photometrics, views, torch.float32)
    with device_of(views):
        _mean_kernel[(batch * num_views * tiles,)](
            views, parameters, sums, SIDE=side, BLOCK=PIXELS, num_warps=8, **FUSION
        )
    return run_passes_2_and_3(views, parameters, sums, mean, std, channels_last, dtype)
