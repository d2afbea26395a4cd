"""augment on the GPU: three launches, the fewest passes over memory that the mean and the blur allow.

| pass | reads | writes | for |
|---|---|---|---|
| 1 mean | uint8 views | one sum per tile | contrast, which pivots on the mean grey value before it |
| | | taps of the blur | views with a blur |
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
    if threshold <= 1.0:
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
def _radius(p: tl.tensor, SIDE: tl.constexpr) -> tl.tensor:
    """Return the radius of the blur in pixels, less than SIDE. Cuts off at 3.5 sigma: 0.05 % of the weight."""
    radius = tl.minimum(tl.load(p + BLUR_RADIUS), tl.ceil(3.5 * tl.load(p + BLUR_SIGMA)))
    return tl.minimum(radius.to(tl.int32), SIDE - 1)


@jit
def _reflect(i: tl.tensor, SIDE: tl.constexpr) -> tl.tensor:
    """Reflect index i, at most SIDE - 1 outside, at the borders without repeating the edge."""
    i = tl.abs(i)
    return tl.minimum(i, 2 * (SIDE - 1) - i)


@jit
def _mean_kernel(
    views: tl.tensor,
    photometrics: tl.tensor,
    sums: tl.tensor,
    taps: tl.tensor,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Pass 1: sum the grey values before contrast over each run of BLOCK pixels, into sums (N, TILES).

    The first program of a view also stores its blur's weights at the distances 0 to TAPS - 1: taps (N, TAPS).
    """
    TILES: tl.constexpr = (SIDE * SIDE + BLOCK - 1) // BLOCK
    n, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    p = photometrics + n * FIELDS
    if tl.load(p + CONTRAST) != 1.0:
        i = tile * BLOCK + tl.arange(0, BLOCK)
        r, g, b = _load(views + n * SIDE * SIDE * 3, tl.minimum(i, SIDE * SIDE - 1))
        luma = tl.where(i < SIDE * SIDE, before_contrast(r, g, b, p), 0.0)
        tl.store(sums + tl.program_id(0), tl.sum(luma, axis=0))
    sigma = tl.load(p + BLUR_SIGMA)
    if (tile == 0) & (sigma > 0.0):
        k = tl.arange(0, TAPS)
        w = tl.where(k <= _radius(p, SIDE), tl.exp(-0.5 / (sigma * sigma) * k * k), 0.0)
        tl.store(taps + n * TAPS + k, w / (2.0 * tl.sum(w, axis=0) - 1.0))


@jit
def _pixels_kernel(
    views: tl.tensor,
    photometrics: tl.tensor,
    sums: tl.tensor,
    taps: tl.tensor,
    planes: tl.tensor,
    out: tl.tensor,
    AFFINE: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    TAPS: tl.constexpr,
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
            w = tl.load(taps + n * TAPS)
            r, g, b = w * r, w * g, w * b
            for k in range(1, _radius(p, SIDE) + 1):
                w = tl.load(taps + n * TAPS + k)
                left, right = start + _reflect(x - k, SIDE), start + _reflect(x + k, SIDE)
                r += w * (tl.load(red + left).to(tl.float32) + tl.load(red + right).to(tl.float32))
                g += w * (tl.load(green + left).to(tl.float32) + tl.load(green + right).to(tl.float32))
                b += w * (tl.load(blue + left).to(tl.float32) + tl.load(blue + right).to(tl.float32))
            tl.debug_barrier()
            tl.store(red + i, r.to(tl.float16), mask=inside)
            tl.store(green + i, g.to(tl.float16), mask=inside)
            tl.store(blue + i, b.to(tl.float16), mask=inside)
        else:
            threshold = tl.load(p + SOLARIZE)
            _store(result, i, inside, r, g, b, threshold, AFFINE, SIDE, CHANNELS_LAST)


@jit
def _rows(plane: tl.tensor, i: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Load values i of a float16 plane as float32."""
    return tl.load(plane + i, mask=inside, other=0.0).to(tl.float32)


@jit
def _columns_kernel(
    photometrics: tl.tensor,
    taps: tl.tensor,
    planes: tl.tensor,
    out: tl.tensor,
    AFFINE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TAPS: tl.constexpr,
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
        inside, i = (y < SIDE) & (x < SIDE), y * SIDE + x
        # Lanes outside the view read its last row.
        y = tl.minimum(y, SIDE - 1)
        r, g, b = (
            _rows(red, y * SIDE + x, x < SIDE),
            _rows(green, y * SIDE + x, x < SIDE),
            _rows(blue, y * SIDE + x, x < SIDE),
        )
        w = tl.load(taps + n * TAPS)
        r, g, b = w * r, w * g, w * b
        for k in range(1, _radius(p, SIDE) + 1):
            w = tl.load(taps + n * TAPS + k)
            above, below = _reflect(y - k, SIDE) * SIDE + x, _reflect(y + k, SIDE) * SIDE + x
            r += w * (_rows(red, above, x < SIDE) + _rows(red, below, x < SIDE))
            g += w * (_rows(green, above, x < SIDE) + _rows(green, below, x < SIDE))
            b += w * (_rows(blue, above, x < SIDE) + _rows(blue, below, x < SIDE))
        threshold = tl.load(p + SOLARIZE)
        _store(out + n * SIDE * SIDE * 3, i, inside, r, g, b, threshold, AFFINE, SIDE, CHANNELS_LAST)


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
    views, count = views.contiguous(), batch * num_views
    plain = photometrics is None
    parameters = views if photometrics is None else upload(photometrics, views, torch.float32)  # PLAIN reads none

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=views.device)

    parts, num_taps = triton.cdiv(side * side, PIXELS), triton.next_power_of_2(side)
    augmented = 0 if plain else count
    sums, taps = empty(augmented, parts), empty(augmented, num_taps)
    planes = empty(augmented, 3, side, side, dtype=torch.float16)
    out = empty(count, *((side, side, 3) if channels_last else (3, side, side)), dtype=dtype)
    scale = [1.0 / s for s in std]
    affine = (*scale, *(-m * s for m, s in zip(mean, scale, strict=True)))
    layout = {"AFFINE": affine, "CHANNELS_LAST": channels_last, "SIDE": side, "TAPS": num_taps, **FUSION}
    columns = triton.next_power_of_2(side)
    rows = max(1, ROW_PIXELS // columns)
    tile = {"PARTS": parts, "PARTS_PAD": triton.next_power_of_2(parts), "ROWS": rows, "COLUMNS": columns}
    row_tiles, squares = triton.cdiv(side, rows), triton.cdiv(side, SQUARE.value) ** 2
    with device_of(views):
        if not plain:
            _mean_kernel[(count * parts,)](
                views, parameters, sums, taps, SIDE=side, TAPS=num_taps, BLOCK=PIXELS, num_warps=8, **FUSION
            )
        _pixels_kernel[(count * row_tiles,)](
            views, parameters, sums, taps, planes, out, PLAIN=plain, **tile, **layout, num_warps=4
        )
        if not plain:
            _columns_kernel[(count * squares,)](parameters, taps, planes, out, **layout, num_warps=4)
    out = out.view(batch, num_views, *out.shape[1:])
    return out.permute(0, 1, 4, 2, 3) if channels_last else out
