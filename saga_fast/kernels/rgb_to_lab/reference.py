"""The oracle of rgb_to_lab and rgb_to_ydbdr: NumPy float64 from the equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, NDArray, convert_like, to_numpy

XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
"""D65, 2 degrees."""
YDBDR = ((0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217))


def _normalise(converted: NDArray, mean: Sequence[float], std: Sequence[float], images: Array) -> Any:
    normalised = (converted - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    return convert_like(normalised.astype(np.float32), images)


def rgb_to_lab_reference(images: Array, mean: Sequence[float], std: Sequence[float]) -> Any:
    """See :func:`saga_fast.kernels.rgb_to_lab`."""
    rgb = to_numpy(images, np.float64)
    linear = np.where(rgb > 0.04045, ((np.maximum(rgb, 0.0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    t = np.einsum("ij,bjhw->bihw", XYZ, linear) / np.reshape(WHITE, (3, 1, 1))
    x, y, z = np.moveaxis(np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16.0 / 116.0), 1, 0)
    return _normalise(np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], 1), mean, std, images)


def rgb_to_ydbdr_reference(images: Array, mean: Sequence[float], std: Sequence[float]) -> Any:
    """See :func:`saga_fast.kernels.rgb_to_ydbdr`."""
    return _normalise(np.einsum("ij,bjhw->bihw", YDBDR, to_numpy(images, np.float64)), mean, std, images)
