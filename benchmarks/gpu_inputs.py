"""Inputs of the GPU benchmark's sections: photographs on the device, and views made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.gpu_timing import Bench
from benchmarks.kernel_peers import HEIGHT, VIEW, WIDTH, pictures, two_windows
from saga_fast.kernels import augment, crop_resize, sample_photometrics
from saga_fast.profile.kernels import MEAN, MOCO_V2, STD


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """A batch of stored images of one size.

    Attributes:
        images: (B, H, W, 3) uint8 on the device.
        sizes: (B, 2) height and width.
        side: of their views, pixels.
    """

    images: Tensor
    sizes: npt.NDArray[np.int64]
    side: int


def photographs(bench: Bench) -> Photographs:
    """256 images of ImageNet's usual size, of which 32 are different."""
    batch, height, width, side = (2, 40, 53, 32) if bench.small else (256, HEIGHT, WIDTH, VIEW)
    different = bench.put(pictures(min(batch, 32), height, width))
    images = different.repeat(-(-batch // 32), 1, 1, 1)
    return Photographs(images=images, sizes=np.tile([height, width], (batch, 1)), side=side)


def draws(bench: Bench, sizes: npt.NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
    """The windows (B, 2, 4) and photometrics (B, 2, P) of an epoch's two MoCo v2 views, on the CPU."""
    windows = two_windows(sizes, seed=bench.seed, epoch=epoch)
    photometrics = sample_photometrics(MOCO_V2, bench.seed, epoch, np.arange(len(sizes)), 2)
    return torch.from_numpy(windows), torch.from_numpy(photometrics)


def finished_views(
    bench: Bench,
    images: Tensor,
    windows: Tensor,
    photometrics: Tensor | None,
    side: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """``crop_resize``, then ``augment`` to channels_last, normalised with ImageNet's mean and standard deviation."""
    views = crop_resize(images, windows, side, impl=bench.impl)
    return augment(views, photometrics, MEAN, STD, channels_last=True, dtype=dtype, impl=bench.impl)
