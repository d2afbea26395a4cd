"""planes_to_rgb on the GPU: one launch for images of any sizes, one thread per pixel.

A pixel reads nine bytes, eight of which its neighbours read too and find in the cache; it is bound by the memory that
its brightness, a quarter of each colour and its three channels take, 4.5 bytes.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels._triton import device_of, jit, require_gpu, upload
from saga_fast.kernels.planes_to_rgb.reference import num_bytes

BLOCK = 1024
"""Pixels per program."""


@jit
def _upsample(plane: tl.tensor, y: tl.tensor, x: tl.tensor, rows: tl.tensor, columns: tl.tensor) -> tl.tensor:
    """Return the colour of pixels, less 128, int32."""
    near_y, near_x = y // 2, x // 2
    far_y = tl.maximum(tl.minimum(near_y + 2 * (y % 2) - 1, rows - 1), 0)
    far_x = tl.maximum(tl.minimum(near_x + 2 * (x % 2) - 1, columns - 1), 0)
    nearest = tl.load(plane + near_y * columns + near_x).to(tl.int32)
    here = 3 * nearest + tl.load(plane + far_y * columns + near_x).to(tl.int32)
    beside = 3 * tl.load(plane + near_y * columns + far_x).to(tl.int32)
    beside += tl.load(plane + far_y * columns + far_x).to(tl.int32)
    smooth = (3 * here + beside + 8 - x % 2) >> 4
    return tl.where(columns <= 2, nearest, smooth) - 128


@jit
def _byte(level: tl.tensor) -> tl.tensor:
    return tl.minimum(tl.maximum(level, 0), 255).to(tl.uint8)


@jit
def _planes_kernel(
    planes: tl.tensor, images: tl.tensor, pixels: tl.tensor, tiles: tl.tensor, SIZE: tl.constexpr
) -> None:
    """Convert SIZE pixels of one image per program.

    images (B, 4) int64: where the image begins in planes and in pixels, height and width. ``tiles`` programs each.
    """
    entry = images + 4 * (tl.program_id(0) // tiles)
    image, target = planes + tl.load(entry), pixels + tl.load(entry + 1)
    height, width = tl.load(entry + 2).to(tl.int32), tl.load(entry + 3).to(tl.int32)
    pixel = (tl.program_id(0) % tiles) * SIZE + tl.arange(0, SIZE)
    inside = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    y, x = pixel // width, pixel % width
    rows, columns = (height + 1) // 2, (width + 1) // 2
    level = tl.load(image + pixel).to(tl.int32)
    blue = _upsample(image + height * width, y, x, rows, columns)
    red = _upsample(image + height * width + rows * columns, y, x, rows, columns)
    target += 3 * pixel.to(tl.int64)
    tl.store(target, _byte(level + ((91881 * red + 32768) >> 16)), mask=inside)
    tl.store(target + 1, _byte(level + ((-22554 * blue - 46802 * red + 32768) >> 16)), mask=inside)
    tl.store(target + 2, _byte(level + ((116130 * blue + 32768) >> 16)), mask=inside)


def planes_to_rgb_triton(planes: torch.Tensor, sizes: NDArray) -> torch.Tensor:
    """See :func:`saga_fast.kernels.planes_to_rgb`."""
    require_gpu(planes)
    areas = sizes.prod(1)
    begins = [np.append(0, sums.cumsum()) for sums in (num_bytes(*sizes.T), 3 * areas)]
    pixels = torch.empty(int(begins[1][-1]), dtype=torch.uint8, device=planes.device)
    if not len(sizes):
        return pixels
    images = upload(np.column_stack([begins[0][:-1], begins[1][:-1], sizes]), planes, torch.int64)
    tiles = triton.cdiv(int(areas.max()), BLOCK)
    with device_of(planes):
        _planes_kernel[(len(sizes) * tiles,)](planes.contiguous(), images, pixels, tiles, SIZE=BLOCK)
    return pixels
