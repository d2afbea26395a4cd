"""Images as 4:2:0 planes (:mod:`saga_fast.kernels.planes_to_rgb`), which ``saga-fast pack --mode yuv420`` stores.

A JPEG with this subsampling is stored without loss: its planes are what libjpeg decodes, and they become RGB as
libjpeg-turbo makes it, to the bit. libjpeg-turbo's own tjDecodeYUVPlanes blends no colours of neighbouring rows, and
differs by up to 46 levels.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from saga_fast.loaders.decode import DecodeError, Pixels
from saga_fast.loaders.ffcv.turbojpeg import LIBRARY, RGB, YUV420


def planes_of_jpeg(data: bytes, height: int, width: int) -> bytes:
    """The planes of a JPEG with 4:2:0 subsampling, whose header has this size.

    Raises:
        DecodeError: it is damaged.
    """
    planes = _Planes(height, width)
    source = np.frombuffer(data, np.uint8)
    handle = ctypes.c_void_p(LIBRARY.tjInitDecompress())
    failed = LIBRARY.tjDecompressToYUVPlanes(
        handle, source.ctypes, ctypes.c_ulong(len(data)), planes.addresses, width, planes.strides, height, 0
    )
    LIBRARY.tjDestroy(handle)
    if failed:
        raise DecodeError("damaged JPEG")
    return planes.stored()


def planes_of_pixels(pixels: Pixels) -> bytes:
    """The planes of (H, W, 3) uint8, as libjpeg makes them: each colour is the mean of four pixels'."""
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    planes = _Planes(height, width)
    handle = ctypes.c_void_p(LIBRARY.tjInitCompress())
    failed = LIBRARY.tjEncodeYUVPlanes(
        handle, pixels.ctypes, width, 3 * width, height, RGB, planes.addresses, planes.strides, YUV420, 0
    )
    LIBRARY.tjDestroy(handle)
    if failed:
        raise DecodeError(f"libjpeg-turbo cannot make 4:2:0 planes of {width} x {height} pixels")
    return planes.stored()


class _Planes:
    """Memory for the planes of one image; libjpeg-turbo fills Y up to an even height and width."""

    def __init__(self, height: int, width: int) -> None:
        rows, columns = (height + 1) // 2, (width + 1) // 2
        self._planes: list[npt.NDArray[np.uint8]] = [
            np.empty((2 * rows, 2 * columns), np.uint8),
            *(np.empty((rows, columns), np.uint8) for _ in "br"),
        ]
        self._height, self._width = height, width
        self.addresses = (ctypes.c_void_p * 3)(*(plane.ctypes.data for plane in self._planes))
        self.strides = (ctypes.c_int * 3)(*(plane.shape[1] for plane in self._planes))

    def stored(self) -> bytes:
        luma, *chroma = self._planes
        return b"".join([luma[: self._height, : self._width].tobytes(), *(plane.tobytes() for plane in chroma)])
