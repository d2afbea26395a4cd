"""rgb_to_lab and rgb_to_ydbdr with torch, on the images' device.

Weighted sums of planes instead of a matrix product, which autocast would compute in 16 bits and a GPU in TF32. The CPU
converts one image at a time, so that its planes stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels.rgb_to_lab.reference import WHITE, XYZ, YDBDR

Planes = Sequence[torch.Tensor]


def _weighted(planes: Planes, weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted sum of three planes."""
    return (planes[0] * weights[0]).add_(planes[1], alpha=weights[1]).add_(planes[2], alpha=weights[2])


def _lab(rgb: torch.Tensor) -> Planes:
    bright = ((rgb + 0.055) / 1.055).pow_(2.4)
    linear = torch.where(rgb > 0.04045, bright, rgb / 12.92).unbind(1)
    f = []
    for row, white in zip(XYZ, WHITE, strict=True):
        t = _weighted(linear, [weight / white for weight in row])
        f.append(torch.where(t > 0.008856, t.pow(1.0 / 3.0), t * 7.787 + 16.0 / 116.0))
    x, y, z = f
    return y * 116.0 - 16.0, (x - y) * 500.0, (y - z) * 200.0


def _ydbdr(rgb: torch.Tensor) -> Planes:
    planes = rgb.unbind(1)
    return [_weighted(planes, row) for row in YDBDR]


def _convert(images: Array, mean: Sequence[float], std: Sequence[float], convert: Callable[..., Planes]) -> Any:
    if not isinstance(images, torch.Tensor):
        return _convert(torch.from_numpy(images), mean, std, convert).numpy()
    result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    batch_size = max(len(images), 1) if images.is_cuda else 1
    with torch.no_grad():
        for begin in range(0, len(images), batch_size):
            batch = slice(begin, begin + batch_size)
            for channel, plane in enumerate(convert(images[batch])):
                torch.div(plane - mean[channel], std[channel], out=result[batch, channel])
    return result


def rgb_to_lab_torch(images: Array, mean: Sequence[float], std: Sequence[float]) -> Any:
    """See :func:`saga_fast.kernels.rgb_to_lab`."""
    return _convert(images, mean, std, _lab)


def rgb_to_ydbdr_torch(images: Array, mean: Sequence[float], std: Sequence[float]) -> Any:
    """See :func:`saga_fast.kernels.rgb_to_ydbdr`."""
    return _convert(images, mean, std, _ydbdr)
