"""crop_resize on the GPU: one launch without an intermediate image; each output pixel sums its taps.

Output pixels that share a tap read it from the cache, so device memory is read once. The work is the product of the
taps of both axes: some 10 reads per pixel where a 500 px image becomes a 224 px view. A separable version through
shared memory would pay off for images stored many times larger.

Positions are exact integers in units of 1 / (2 size) of a pixel, so a tap is never lost to rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels._triton import FUSION, device_of, jit, require_gpu, upload

TILE_Y, TILE_X = 16, 64  # 8 pixels per thread; the 32 lanes of a warp are adjacent in a row


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
    window: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    SIZE: tl.constexpr,
) -> tl.tensor:
    """Return r, g, b (TY, TX), rounded to levels, for rows y (TY,) and columns x (TX,) of one view.

    image (image_height, image_width, 3) uint8; window int32 [top, left, height, width], clipped to the image because
    refusing it would make the host wait for the GPU.
    """
    top = tl.minimum(tl.maximum(tl.load(window), 0), image_height - 1)
    left = tl.minimum(tl.maximum(tl.load(window + 1), 0), image_width - 1)
    height = tl.minimum(tl.maximum(tl.load(window + 2), 1), image_height - top)
    width = tl.minimum(tl.maximum(tl.load(window + 3), 1), image_width - left)
    y_first, y_distance, y_norm, y_scale, y_taps = _axis(y, height, SIZE)
    x_first, x_distance, x_norm, x_scale, x_taps = _axis(x, width, SIZE)
    red = tl.zeros([y.shape[0], x.shape[0]], tl.float32)
    green, blue = red, red
    for i in range(y_taps):
        w_Y = _weight(y_first + i, y_distance + 2 * SIZE * i, y_scale, height) * y_norm
        row = (top + tl.minimum(y_first + i, height - 1)) * image_width + left
        line_r = tl.zeros_like(red)
        line_g, line_b = line_r, line_r
        for j in range(x_taps):
            w_X = _weight(x_first + j, x_distance + 2 * SIZE * j, x_scale, width)[None, :]
            pixel = image + 3 * (row[:, None] + tl.minimum(x_first + j, width - 1)[None, :])
            line_r += w_X * tl.load(pixel).to(tl.float32)
            line_g += w_X * tl.load(pixel + 1).to(tl.float32)
            line_b += w_X * tl.load(pixel + 2).to(tl.float32)
        red += w_Y[:, None] * line_r
        green += w_Y[:, None] * line_g
        blue += w_Y[:, None] * line_b
    norm = x_norm[None, :]
    # The nearest level. Weights are positive and sum to 1, so all values are in [0, 255].
    return tl.floor(red * norm + 0.5), tl.floor(green * norm + 0.5), tl.floor(blue * norm + 0.5)


@jit
def store_crop(
    images: tl.tensor,
    windows: tl.tensor,
    flip: tl.tensor,
    views: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
) -> tl.tensor:
    """Store this program's tile; return its view number, levels r, g, b and the mask of lanes inside.

    Tiles of one view and views of one image are adjacent in the grid, so their pixels come from the cache.
    """
    TILES_X: tl.constexpr = (SIZE + TX - 1) // TX
    TILES: tl.constexpr = TILES_X * ((SIZE + TY - 1) // TY)
    n, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    y = (tile // TILES_X) * TY + tl.arange(0, TY)
    x = (tile % TILES_X) * TX + tl.arange(0, TX)
    inside = (y < SIZE)[:, None] & (x < SIZE)[None, :]
    image = images + (n // V) * image_height * image_width * 3
    y, x = tl.minimum(y, SIZE - 1), tl.minimum(x, SIZE - 1)
    r, g, b = _crop(image, windows + 4 * n, y, x, image_height, image_width, SIZE)
    if FLIP:
        x = tl.where(tl.load(flip + n) != 0, SIZE - 1 - x, x)
    pixel = views + n * SIZE * SIZE * 3 + 3 * (y[:, None] * SIZE + x[None, :])
    tl.store(pixel, r.to(tl.uint8), mask=inside)
    tl.store(pixel + 1, g.to(tl.uint8), mask=inside)
    tl.store(pixel + 2, b.to(tl.uint8), mask=inside)
    return n, r, g, b, inside


@jit
def _crop_resize_kernel(
    images: tl.tensor,
    windows: tl.tensor,
    flip: tl.tensor,
    views: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    FLIP: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
) -> None:
    """Store one tile of one view per program."""
    store_crop(images, windows, flip, views, image_height, image_width, V, SIZE, FLIP, TY, TX)


def tiles(size: int) -> int:
    """Return the number of programs per view."""
    return int(triton.cdiv(size, TILE_Y) * triton.cdiv(size, TILE_X))


def crop_resize_triton(images: torch.Tensor, windows: Array, size: int, flip: Array | None) -> torch.Tensor:
    """See :func:`saga_fast.kernels.crop_resize`; images (B, H, W, 3), windows (B, V, 4), flip (B, V)."""
    require_gpu(images)
    batch, num_views = windows.shape[:2]
    images = images.contiguous()
    windows = upload(windows, images, torch.int32)
    flags = windows if flip is None else upload(flip, images, torch.uint8)
    views = torch.empty((batch, num_views, size, size, 3), dtype=torch.uint8, device=images.device)
    with device_of(images):
        _crop_resize_kernel[(batch * num_views * tiles(size),)](
            images,
            windows,
            flags,
            views,
            images.shape[1],
            images.shape[2],
            V=num_views,
            SIZE=size,
            FLIP=flip is not None,
            TY=TILE_Y,
            TX=TILE_X,
            num_warps=4,
            **FUSION,
        )
    return views
