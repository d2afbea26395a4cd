"""The oracle of planes_to_rgb: NumPy, in the integers of libjpeg-turbo (jdsample.c, jdcolor.c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, NDArray, convert_like, to_numpy


def num_bytes(height: Any, width: Any) -> Any:
    """Bytes of the planes of an image, or of the images of arrays of sizes."""
    return height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2)


def _farther(count: int, size: int) -> NDArray:
    """(size,) int64: of each pixel's position, the second nearest of ``count`` rows or columns of colour.

    Beyond the edge lies the edge again.
    """
    position = np.arange(size)
    return (position // 2 + 2 * (position % 2) - 1).clip(0, count - 1)


def _upsample(plane: NDArray, height: int, width: int) -> NDArray:
    """(height, width) int64 of a colour. The nearer row and column weigh 3, the farther ones 1.

    Halves are rounded down and up in turn. libjpeg repeats the colours of planes of one or two columns.
    """
    rows, columns = plane.shape
    x = np.arange(width)
    if columns <= 2:
        return plane[np.arange(height) // 2][:, x // 2]
    sums = 3 * plane[np.arange(height) // 2] + plane[_farther(rows, height)]
    smooth: NDArray = (3 * sums[:, x // 2] + sums[:, _farther(columns, width)] + 8 - x % 2) // 16
    return smooth


def planes_to_rgb_reference(planes: Array, sizes: NDArray) -> Any:
    """See :func:`saga_fast.kernels.planes_to_rgb`."""
    stored, images, begin = to_numpy(planes, np.int64), [np.empty(0, np.uint8)], 0
    for height, width in sizes.tolist():
        rows, columns = (height + 1) // 2, (width + 1) // 2
        end = begin + height * width
        luma = stored[begin:end].reshape(height, width)
        begin = end + 2 * rows * columns
        blue, red = (_upsample(plane, height, width) - 128 for plane in stored[end:begin].reshape(2, rows, columns))
        # JFIF's factors 1.402, 0.34414, 0.71414 and 1.772 in 65536ths.
        pixels = [
            luma + (91881 * red + 32768) // 65536,
            luma + (-22554 * blue - 46802 * red + 32768) // 65536,
            luma + (116130 * blue + 32768) // 65536,
        ]
        images.append(np.stack(pixels, -1).clip(0, 255).astype(np.uint8).reshape(-1))
    return convert_like(np.concatenate(images), planes)
