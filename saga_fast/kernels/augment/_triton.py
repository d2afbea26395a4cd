"""augment on the GPU: three launches, the fewest passes over memory that the mean and the blur allow.

| pass | reads | writes | for |
|---|---|---|---|
| 1 mean | uint8 views | one sum per tile | contrast, which pivots on the mean grey value before it |
| | | taps of the blur | views with a blur |
| 2 pixels | uint8 views | result, or float16 planes blurred along x | every view; the planes for those with a blur |
| 3 columns | float16 planes | result | views with a blur: along y, solarize, normalise |

The planes have the result's layout. A channels_last image is to pass 3 one plane of rows of 3 * S values, so that its
reads and writes are 16 bytes wide in either layout. With three values of 2 bytes per pixel, each written alone, that
pass took seven times as long on an H200 (585 us against 82).

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
ROW_PIXELS, ROW_WARPS = 256, 2  # per program in pass 2: 4 per thread. With 8 it takes 1.5 times as long on an H200
COLUMN_TILE, COLUMN_WARPS = (32, 64), 4  # rows and values of a row per program in pass 3: 16 values per thread


@jit
def _load(view: tl.tensor, i: tl.tensor) -> tl.tensor:
    """Load pixels i of a view (SIDE * SIDE, 3) uint8 as r, g, b in [0, 1]."""
    scale = 1.0 / 255.0
    r, g, b = tl.load(view + 3 * i), tl.load(view + 3 * i + 1), tl.load(view + 3 * i + 2)
    return r.to(tl.float32) * scale, g.to(tl.float32) * scale, b.to(tl.float32) * scale


@jit
def _finish(value: tl.tensor, threshold: tl.tensor, scale: tl.tensor, offset: tl.tensor) -> tl.tensor:
    """Solarize, for thresholds up to 1, and normalise."""
    return scale * tl.where(value >= threshold, 1.0 - value, value) + offset


@jit
def _store(
    target: tl.tensor,
    i: tl.tensor,
    inside: tl.tensor,
    r: tl.tensor,
    g: tl.tensor,
    b: tl.tensor,
    SIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
) -> None:
    """Store pixels i of a view, in the result's layout."""
    pixel: tl.constexpr = 3 if CHANNELS_LAST else 1
    channel: tl.constexpr = 1 if CHANNELS_LAST else SIDE * SIDE
    dtype = target.dtype.element_ty
    tl.store(target + pixel * i, r.to(dtype), mask=inside)
    tl.store(target + pixel * i + channel, g.to(dtype), mask=inside)
    tl.store(target + pixel * i + 2 * channel, b.to(dtype), mask=inside)


@jit
def _store_finished(
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
    r = _finish(r, threshold, AFFINE[0], AFFINE[3])
    g = _finish(g, threshold, AFFINE[1], AFFINE[4])
    b = _finish(b, threshold, AFFINE[2], AFFINE[5])
    _store(out, i, inside, r, g, b, SIDE, CHANNELS_LAST)


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
def _blur_rows(
    planes: tl.tensor,
    start: tl.tensor,
    x: tl.tensor,
    r: tl.tensor,
    g: tl.tensor,
    b: tl.tensor,
    taps: tl.tensor,
    radius: tl.tensor,
    SIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
) -> tl.tensor:
    """Return pixels r, g, b of columns x, blurred along rows of one view's planes; a row begins at pixel ``start``."""
    pixel: tl.constexpr = 3 if CHANNELS_LAST else 1
    channel: tl.constexpr = 1 if CHANNELS_LAST else SIDE * SIDE
    green, blue = planes + channel, planes + 2 * channel
    w = tl.load(taps)
    r, g, b = w * r, w * g, w * b
    for k in range(1, radius + 1):
        w = tl.load(taps + k)
        left, right = pixel * (start + _reflect(x - k, SIDE)), pixel * (start + _reflect(x + k, SIDE))
        r += w * (tl.load(planes + left).to(tl.float32) + tl.load(planes + right).to(tl.float32))
        g += w * (tl.load(green + left).to(tl.float32) + tl.load(green + right).to(tl.float32))
        b += w * (tl.load(blue + left).to(tl.float32) + tl.load(blue + right).to(tl.float32))
    return r, g, b


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

    sums (N, PARTS), planes float16 in the result's layout. PLAIN only normalises.
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
        _store_finished(result, i, inside, r, g, b, 2.0, AFFINE, SIDE, CHANNELS_LAST)
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
            planes += n * SIDE * SIDE * 3
            _store(planes, i, inside, r, g, b, SIDE, CHANNELS_LAST)
            tl.debug_barrier()
            r, g, b = _blur_rows(planes, start, x, r, g, b, taps + n * TAPS, _radius(p, SIDE), SIDE, CHANNELS_LAST)
            tl.debug_barrier()
            _store(planes, i, inside, r, g, b, SIDE, CHANNELS_LAST)
        else:
            threshold = tl.load(p + SOLARIZE)
            _store_finished(result, i, inside, r, g, b, threshold, AFFINE, SIDE, CHANNELS_LAST)


@jit
def _values(row: tl.tensor, x: tl.tensor, LINE: tl.constexpr) -> tl.tensor:
    """Load values x of rows of float16 as float32."""
    return tl.load(row + x, mask=x < LINE, other=0.0).to(tl.float32)


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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Pass 3, one tile of a plane per program: blur along y, solarize, normalise and store.

    planes (N, PLANES, SIDE, LINE) float16, blurred along x.
    """
    PLANES: tl.constexpr = 1 if CHANNELS_LAST else 3
    LINE: tl.constexpr = 3 * SIDE if CHANNELS_LAST else SIDE
    TILES_X: tl.constexpr = (LINE + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = TILES_X * ((SIDE + ROWS - 1) // ROWS)
    n, tile = (tl.program_id(0) // (PLANES * TILES)).to(tl.int64), tl.program_id(0) % TILES
    p = photometrics + n * FIELDS
    if tl.load(p + BLUR_SIGMA) > 0.0:
        number = tl.program_id(0) // TILES % PLANES
        y = tile // TILES_X * ROWS + tl.arange(0, ROWS)[:, None]
        x = tile % TILES_X * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside, i = (y < SIDE) & (x < LINE), y * LINE + x
        first = (n * PLANES + number) * SIDE * LINE
        plane = planes + first
        y = tl.minimum(y, SIDE - 1)  # rows outside the plane read its last one
        value = tl.load(taps + n * TAPS) * _values(plane + y * LINE, x, LINE)
        for k in range(1, _radius(p, SIDE) + 1):
            above, below = plane + _reflect(y - k, SIDE) * LINE, plane + _reflect(y + k, SIDE) * LINE
            value += tl.load(taps + n * TAPS + k) * (_values(above, x, LINE) + _values(below, x, LINE))
        channel = x % 3 if CHANNELS_LAST else number
        scale = tl.where(channel == 0, AFFINE[0], tl.where(channel == 1, AFFINE[1], AFFINE[2]))
        offset = tl.where(channel == 0, AFFINE[3], tl.where(channel == 1, AFFINE[4], AFFINE[5]))
        value = _finish(value, tl.load(p + SOLARIZE), scale, offset)
        tl.store(out + first + i, value.to(out.dtype.element_ty), mask=inside)


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
    shape = (side, side, 3) if channels_last else (3, side, side)
    planes, out = empty(augmented, *shape, dtype=torch.float16), empty(count, *shape, dtype=dtype)
    scale = [1.0 / s for s in std]
    affine = (*scale, *(-m * s for m, s in zip(mean, scale, strict=True)))
    layout = {"AFFINE": affine, "CHANNELS_LAST": channels_last, "SIDE": side, "TAPS": num_taps, **FUSION}
    columns = triton.next_power_of_2(side)
    rows = max(1, ROW_PIXELS // columns)
    tile = {"PARTS": parts, "PARTS_PAD": triton.next_power_of_2(parts), "ROWS": rows, "COLUMNS": columns}
    row_tiles = triton.cdiv(side, rows)
    planes_of, line = (1, 3 * side) if channels_last else (3, side)
    tile_rows, tile_columns = COLUMN_TILE
    column_tiles = planes_of * triton.cdiv(side, tile_rows) * triton.cdiv(line, tile_columns)
    with device_of(views):
        if not plain:
            _mean_kernel[(count * parts,)](
                views, parameters, sums, taps, SIDE=side, TAPS=num_taps, BLOCK=PIXELS, num_warps=8, **FUSION
            )
        _pixels_kernel[(count * row_tiles,)](
            views, parameters, sums, taps, planes, out, PLAIN=plain, **tile, **layout, num_warps=ROW_WARPS
        )
        if not plain:
            _columns_kernel[(count * column_tiles,)](
                parameters,
                taps,
                planes,
                out,
                **layout,
                ROWS=tile_rows,
                COLUMNS=tile_columns,
                num_warps=COLUMN_WARPS,
            )
    out = out.view(batch, num_views, *out.shape[1:])
    return out.permute(0, 1, 4, 2, 3) if channels_last else out
