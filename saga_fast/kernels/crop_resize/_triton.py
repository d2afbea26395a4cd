"""crop_resize on the GPU: one launch without an intermediate image; each output pixel sums its taps.

Output pixels that share a tap read it from the cache, so device memory is read once. The work is the product of the
taps of both axes: some 10 reads per pixel where a 500 px image becomes a 224 px view.

A row of taps is summed in integers: a level is a byte, and a weight a multiple of 2**-22. Converting each byte to
float32 would take four times as long as adding it. Positions are exact integers in units of 1 / (2 size) of a pixel, so
a tap is never lost to rounding.

Images are found by a table of their addresses: each may have its own size and strides and lie anywhere on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels._triton import FUSION, device_of, jit, require_gpu, upload
from saga_fast.kernels.crop_resize._images import ImageTable

# 4 pixels per thread, in 58 registers; the lanes of a warp are adjacent in a row. On an H200 tiles of 64 columns and 2
# warps take 1.09 times as long, those of 8 rows 1.4 times: threads in flight count for more than the weights that rows
# share.
TILE_Y, TILE_X, WARPS = 4, 32, 1


@jit
def _weight(position: tl.tensor, distance: tl.tensor, scale: tl.tensor, length: tl.tensor) -> tl.tensor:
    """Return the weight of the tap at ``position`` before normalisation; 0 beyond the window."""
    w = tl.maximum(1.0 - tl.abs(distance).to(tl.float32) * scale, 0.0)
    return tl.where(position < length, w, 0.0)


@jit
def _axis(o: tl.tensor, length: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    """Return the filter of the output positions o along one axis.

    First tap, its distance in units of 1 / (2 SIZE) px, 1 / sum of weights, 1 / half width in the same units, and the
    number of taps. The triangle's half width is max(length / SIZE, 1) px.
    """
    half = 2 * tl.maximum(length, SIZE)
    centre = (2 * o + 1) * length
    first = tl.maximum((centre - half + SIZE) // (2 * SIZE), 0)
    distance = (2 * first + 1) * SIZE - centre
    scale = 1.0 / half.to(tl.float32)
    taps = (half + SIZE - 1) // SIZE
    total = tl.zeros_like(o).to(tl.float32)
    for k in range(taps):
        total += _weight(first + k, distance + 2 * SIZE * k, scale, length)
    return first, distance, 1.0 / total, scale, taps


@jit
def _crop(
    image: tl.tensor,
    strides: tl.tensor,
    window: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    SIZE: tl.constexpr,
    PACKED: tl.constexpr,
) -> tl.tensor:
    """Return r, g, b (TY, TX), rounded to levels, for rows y (TY,) and columns x (TX,) of one view.

    image (image_height, image_width, 3) uint8; strides: address of those of its rows, columns and channels in bytes;
    PACKED says that they are 3 and 1 for columns and channels. window int32 [top, left, height, width], clipped to the
    image because refusing it would make the host wait for the GPU.
    """
    ONE: tl.constexpr = 4194304  # a weight of 1: 2**22 times a level of 255 fits into 31 bits
    top = tl.minimum(tl.maximum(tl.load(window), 0), image_height - 1)
    left = tl.minimum(tl.maximum(tl.load(window + 1), 0), image_width - 1)
    height = tl.minimum(tl.maximum(tl.load(window + 2), 1), image_height - top)
    width = tl.minimum(tl.maximum(tl.load(window + 3), 1), image_width - left)
    y_first, y_distance, y_norm, y_scale, y_taps = _axis(y, height, SIZE)
    x_first, x_distance, x_norm, x_scale, x_taps = _axis(x, width, SIZE)
    row_stride = tl.load(strides)
    if PACKED:
        column_stride, channel_stride = 3, 1
    else:
        column_stride, channel_stride = tl.load(strides + 1), tl.load(strides + 2)
    red = tl.zeros([y.shape[0], x.shape[0]], tl.float32)
    green, blue = red, red
    for i in range(y_taps):
        w_Y = _weight(y_first + i, y_distance + 2 * SIZE * i, y_scale, height) * (y_norm / ONE)
        line = image + (top + tl.minimum(y_first + i, height - 1)) * row_stride
        sum_r = tl.zeros([y.shape[0], x.shape[0]], tl.int32)
        sum_g, sum_b = sum_r, sum_r
        for j in range(x_taps):
            w_X = _weight(x_first + j, x_distance + 2 * SIZE * j, x_scale, width) * (x_norm * ONE)
            w_X = (w_X + 0.5).to(tl.int32)[None, :]
            pixel = line[:, None] + ((left + tl.minimum(x_first + j, width - 1)) * column_stride)[None, :]
            sum_r += w_X * tl.load(pixel).to(tl.int32)
            sum_g += w_X * tl.load(pixel + channel_stride).to(tl.int32)
            sum_b += w_X * tl.load(pixel + 2 * channel_stride).to(tl.int32)
        red += w_Y[:, None] * sum_r.to(tl.float32)
        green += w_Y[:, None] * sum_g.to(tl.float32)
        blue += w_Y[:, None] * sum_b.to(tl.float32)
    # The nearest level. Weights are positive and sum to 1 within 2**-20, so all values are in [0, 255.5).
    return tl.floor(red + 0.5), tl.floor(green + 0.5), tl.floor(blue + 0.5)


@jit
def _crop_resize_kernel(
    table: tl.tensor,
    windows: tl.tensor,
    flip: tl.tensor,
    views: tl.tensor,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    PACKED: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
) -> None:
    """Store one tile of one view per program; ``table`` see :class:`saga_fast.kernels.crop_resize.ImageTable`.

    Tiles of one view and views of one image are adjacent in the grid, so their pixels come from the cache.
    """
    TILES_X: tl.constexpr = (SIZE + TX - 1) // TX
    TILES: tl.constexpr = TILES_X * ((SIZE + TY - 1) // TY)
    n, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    y = (tile // TILES_X) * TY + tl.arange(0, TY)
    x = (tile % TILES_X) * TX + tl.arange(0, TX)
    inside = (y < SIZE)[:, None] & (x < SIZE)[None, :]
    entry = table + 6 * (n // V)
    image = tl.load(entry).to(tl.pointer_type(tl.uint8))
    image_height, image_width = tl.load(entry + 1).to(tl.int32), tl.load(entry + 2).to(tl.int32)
    y, x = tl.minimum(y, SIZE - 1), tl.minimum(x, SIZE - 1)
    r, g, b = _crop(image, entry + 3, windows + 4 * n, y, x, image_height, image_width, SIZE, PACKED)
    if FLIP:
        x = tl.where(tl.load(flip + n) != 0, SIZE - 1 - x, x)
    pixel = views + n * SIZE * SIZE * 3 + 3 * (y[:, None] * SIZE + x[None, :])
    tl.store(pixel, r.to(tl.uint8), mask=inside)
    tl.store(pixel + 1, g.to(tl.uint8), mask=inside)
    tl.store(pixel + 2, b.to(tl.uint8), mask=inside)


def crop_resize_triton(images: ImageTable, windows: Array, size: int, flip: Array | None) -> torch.Tensor:
    """See :func:`saga_fast.kernels.crop_resize`; windows (B, V, 4), flip (B, V)."""
    require_gpu(images.rows)
    batch, num_views = windows.shape[:2]
    views = torch.empty((batch, num_views, size, size, 3), dtype=torch.uint8, device=images.device)
    windows = upload(windows, views, torch.int32)
    flags = windows if flip is None else upload(flip, views, torch.uint8)
    tiles = triton.cdiv(size, TILE_Y) * triton.cdiv(size, TILE_X)
    with device_of(views):
        _crop_resize_kernel[(batch * num_views * tiles,)](
            images.rows,
            windows,
            flags,
            views,
            V=num_views,
            SIZE=size,
            FLIP=flip is not None,
            PACKED=images.packed,
            TY=TILE_Y,
            TX=TILE_X,
            num_warps=WARPS,
            **FUSION,
        )
    return views
