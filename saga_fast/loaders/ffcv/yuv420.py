"""4:2:0 planes: an image as most JPEGs have it after their DCT, in 1.5 bytes per pixel where RGB takes 3.

An image is its brightness Y (H, W), then its colours Cb and Cr (H / 2, W / 2, rounded up), uint8, row by row. A JPEG
with this subsampling is stored without loss: its planes are what libjpeg decodes, and they become RGB as libjpeg-turbo
makes it, to the bit. libjpeg-turbo's own tjDecodeYUVPlanes blends no colours of neighbouring rows, and differs by up to
46 levels.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.kernels._jit import jit
from saga_fast.loaders.decode import DecodeError, Pixels
from saga_fast.loaders.ffcv.turbojpeg import LIBRARY, RGB, YUV420

_I16, _I32 = np.int16, np.int32


def num_bytes(height: Any, width: Any) -> Any:
    """Bytes of the planes of an image, or of the images of arrays of sizes."""
    return height * width + 2 * ((height + 1) // 2) * ((width + 1) // 2)


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


@jit()
def planes_to_rgb(planes: Any, pixels: Any, top: Any, bottom: Any, left: Any, right: Any) -> None:
    """Write the pixels of rows ``top`` to ``bottom`` and columns ``left`` to ``right``; the others stay as they are.

    1.2 ns per pixel of a core. All sums are 16 or 32 bits wide, which the compiler turns into vectors: with Numba's
    own 64 bits it took 5.

    Args:
        planes: (bytes,) uint8, see the module.
        pixels: (H, W, 3) uint8, written.
        top, bottom, left, right: int, within the image.
    """
    height, width = pixels.shape[0], pixels.shape[1]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    luma = planes[: height * width].reshape(height, width)
    colours = planes[height * width :].reshape(2, rows, columns)
    lines = pixels.reshape(height, 3 * width)
    begin, end = left // 2, (right + 1) // 2
    sums = np.empty(columns + 2, _I16)
    blues, reds = np.empty(2 * columns, _I16), np.empty(2 * columns, _I16)
    for y in range(top, bottom):
        _upsample(colours[0], y, begin, end, sums, blues)
        _upsample(colours[1], y, begin, end, sums, reds)
        _to_rgb(luma[y, left:right], blues[left:right], reds[left:right], lines[y, 3 * left : 3 * right])


@jit()
def _upsample(plane: Any, y: Any, begin: Any, end: Any, sums: Any, out: Any) -> None:
    """Row ``y`` of a colour at full size: columns ``begin`` to ``end`` of the plane, into twice as many of ``out``.

    libjpeg's smooth upsampling: the nearer row and column weigh 3, the farther ones 1, and halves are rounded down and
    up in turn. Beyond the edge lies the edge again. libjpeg repeats the colours of planes of one or two columns.
    """
    rows, columns = plane.shape
    if columns <= 2:
        for x in range(2 * begin, 2 * end):
            out[x] = _I16(plane[y // 2, x // 2])
        return
    low, high = max(begin - 1, 0), min(end + 1, columns)
    near = plane[y // 2, low:high]
    far = plane[max(min(y // 2 + 2 * (y % 2) - 1, rows - 1), 0), low:high]
    inner = sums[low + 1 : high + 1]
    for x in range(near.shape[0]):
        inner[x] = _I16(_I16(3) * _I16(near[x]) + _I16(far[x]))
    sums[0], sums[columns + 1] = sums[1], sums[columns]
    before, here, after = sums[begin:end], sums[begin + 1 : end + 1], sums[begin + 2 : end + 2]
    wide = out[2 * begin : 2 * end]
    for x in range(here.shape[0]):
        triple = _I16(_I16(3) * here[x])
        wide[2 * x] = _I16(_I16(triple + before[x] + _I16(8)) >> _I16(4))
        wide[2 * x + 1] = _I16(_I16(triple + after[x] + _I16(7)) >> _I16(4))


@jit()
def _to_rgb(luma: Any, blues: Any, reds: Any, line: Any) -> None:
    """One row's Y, Cb and Cr as R, G, B; JFIF's factors in 65536ths, as libjpeg has them."""
    half, shift, zero, top = _I32(32768), _I32(16), _I32(0), _I32(255)
    for x in range(luma.shape[0]):
        y, b, r = _I32(luma[x]), _I32(_I32(blues[x]) - _I32(128)), _I32(_I32(reds[x]) - _I32(128))
        red = _I32(y + _I32(_I32(_I32(_I32(91881) * r) + half) >> shift))  # 1.402
        mixed = _I32(_I32(_I32(-22554) * b) - _I32(_I32(46802) * r))  # 0.34414 and 0.71414
        green = _I32(y + _I32(_I32(mixed + half) >> shift))
        blue = _I32(y + _I32(_I32(_I32(_I32(116130) * b) + half) >> shift))  # 1.772
        line[3 * x] = np.uint8(min(max(red, zero), top))
        line[3 * x + 1] = np.uint8(min(max(green, zero), top))
        line[3 * x + 2] = np.uint8(min(max(blue, zero), top))
