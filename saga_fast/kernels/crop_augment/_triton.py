"""crop_augment on the GPU: three launches from stored images to normalised views.

The first launch crops and resizes, and sums the grey values for contrast while the pixels are in registers. It replaces
augment's pass 1, which would read all views again. The other two launches are augment's passes 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton.language as tl

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels._triton import FUSION, device_of, jit, require_gpu, upload
from saga_fast.kernels.augment._triton import CONTRAST, FIELDS, run_passes_2_and_3
from saga_fast.kernels.augment._triton_pixels import before_contrast
from saga_fast.kernels.crop_resize._triton import TILE_X, TILE_Y, crop_resize_triton, store_crop, tiles


@jit
def _crop_mean_kernel(
    images: tl.tensor,
    windows: tl.tensor,
    photometrics: tl.tensor,
    views: tl.tensor,
    sums: tl.tensor,
    image_height: tl.tensor,
    image_width: tl.tensor,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    TY: tl.constexpr,
    TX: tl.constexpr,
) -> None:
    """Store one tile of one view, and in sums (N, TILES) the sum of its grey values before contrast."""
    n, r, g, b, inside = store_crop(images, windows, windows, views, image_height, image_width, V, SIZE, False, TY, TX)
    p = photometrics + n * FIELDS
    if tl.load(p + CONTRAST) != 1.0:
        scale = 1.0 / 255.0
        luma = tl.where(inside, before_contrast(r * scale, g * scale, b * scale, p), 0.0)
        tl.store(sums + tl.program_id(0), tl.sum(tl.sum(luma, axis=1), axis=0))


def crop_augment_triton(
    images: torch.Tensor,
    windows: Array,
    photometrics: Array | None,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """See :func:`saga_fast.kernels.crop_augment`."""
    require_gpu(images)
    batch, num_views = windows.shape[:2]
    images = images.contiguous()
    sums = torch.empty((batch * num_views, tiles(size)), dtype=torch.float32, device=images.device)
    if photometrics is None:
        views = crop_resize_triton(images, windows, size, None)
        return run_passes_2_and_3(views, None, sums, mean, std, channels_last, dtype)
    windows, parameters = upload(windows, images, torch.int32), upload(photometrics, images, torch.float32)
    views = torch.empty((batch, num_views, size, size, 3), dtype=torch.uint8, device=images.device)
    with device_of(images):
        _crop_mean_kernel[(batch * num_views * tiles(size),)](
            images,
            windows,
            parameters,
            views,
            sums,
            images.shape[1],
            images.shape[2],
            V=num_views,
            SIZE=size,
            TY=TILE_Y,
            TX=TILE_X,
            num_warps=4,
            **FUSION,
        )
    return run_passes_2_and_3(views, parameters, sums, mean, std, channels_last, dtype)
