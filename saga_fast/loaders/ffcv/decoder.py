"""From stored images to views: one decode and V crops per image, in one compiled function without the GIL.

Legend: n images, V views. ``base`` is the address at which the file lies in memory.
"""

from __future__ import annotations

from mmap import PAGESIZE
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ffcv.fields.rgb_image import IMAGE_MODES
from numba import carray  # type: ignore[attr-defined]

from saga_fast.kernels._jit import jit
from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.kernels.planes_to_rgb import planes_to_rgb_image
from saga_fast.loaders.ffcv.turbojpeg import (
    RGB,
    WILL_NEED,
    advise,
    decompress,
    destroy,
    error_text,
    find_text,
    init_decompress,
    pointer,
    read_header,
)

JPEG, RAW, PLANES = int(IMAGE_MODES["jpg"]), int(IMAGE_MODES["raw"]), 2
"""A record's ``mode``: FFCV has the first two."""
BELOW = 8
"""Rows below a pixel that its smooth chroma depends on: one of chroma, which is four of brightness at most."""

_SKIPPED = np.frombuffer(b"extraneous bytes before marker\0", np.uint8)
"""What libjpeg says of data behind the last row."""


class Stored(NamedTuple):
    """The records of n images, as compiled code takes them."""

    begins: npt.NDArray[np.int64]
    """(n,), where each image begins in the file."""
    lengths: npt.NDArray[np.int64]
    """(n,), bytes of each image."""
    modes: npt.NDArray[np.uint8]
    """(n,): JPEG; RAW pixels, which are cropped in place; or PLANES (:mod:`saga_fast.kernels.planes_to_rgb`)."""
    sizes: npt.NDArray[np.int64]
    """(n, 2), height and width."""


@jit()
def _announce(base: Any, stored: Any) -> None:
    """Ask the system to read the images from the disk now, and not page by page as they are touched."""
    for n in range(stored.begins.shape[0]):
        begin = base + stored.begins[n]
        page = begin - begin % PAGESIZE
        advise(page, begin + stored.lengths[n] - page, WILL_NEED)


@jit()
def _height_at(data: Any) -> Any:
    """The position of the height in a JPEG file; -1 for a progressive one, whose rows are not stored in order."""
    at: Any = 2
    while at + 9 < data.shape[0] and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0xC0 or marker == 0xC1:
            return at + 5
        elif marker == 0xDA or (0xC2 <= marker <= 0xCF and marker != 0xC4):
            return -1
        else:
            at += 2 + 256 * np.int64(data[at + 2]) + np.int64(data[at + 3])
    return -1


@jit()
def _has_size(handle: Any, source: Any, length: Any, height: Any, width: Any, header: Any) -> Any:
    """Whether a JPEG has the size of its record: a smaller one would leave pixels of the image before it in place."""
    at = header.ctypes.data
    failed = read_header(handle, source, length, at, at + 4, at + 8, at + 12) != 0
    return not failed and header[0] == width and header[1] == height


@jit()
def _decode(handle: Any, source: Any, length: Any, height: Any, width: Any, bottom: Any, scratch: Any) -> Any:
    """Decode the rows above ``bottom``, or all rows, to the begin of ``scratch``; return whether it succeeded.

    libturbojpeg 2 decodes whole images only, so it gets a copy of the file whose header ends the image below the last
    row that is needed. Rows are stored in order and do not depend on the rows below, so the pixels are equal. Crops
    from boxes of half the image's side need 72 % of its rows on average.
    """
    rows = bottom + BELOW
    if height - rows > height // 8:
        data = carray(pointer(source), (length,))
        at = _height_at(data)
        if at > 0:
            copy = scratch[3 * rows * width : 3 * rows * width + length]
            copy[:] = data
            copy[at], copy[at + 1] = rows >> 8, rows & 255
            failed = decompress(handle, copy.ctypes.data, length, scratch.ctypes.data, width, 0, rows, RGB, 0) != 0
            if not failed or find_text(error_text(handle), _SKIPPED.ctypes.data) != 0:
                return True
    return decompress(handle, source, length, scratch.ctypes.data, width, 0, height, RGB, 0) == 0


@jit()
def _union(windows: Any) -> Any:
    """Top, bottom, left and right of the smallest window that contains (V, 4) windows."""
    top, left = np.int64(windows[0, 0]), np.int64(windows[0, 1])
    bottom, right = top, left
    for v in range(windows.shape[0]):
        y, x = np.int64(windows[v, 0]), np.int64(windows[v, 1])
        top, left = min(top, y), min(left, x)
        bottom, right = max(bottom, y + np.int64(windows[v, 2])), max(right, x + np.int64(windows[v, 3]))
    return top, bottom, left, right


@jit()
def decode_and_crop(base: Any, stored: Any, windows: Any, sides: Any, scratch: Any, views: Any, good: Any) -> None:
    """Decode each image once and crop all its views. Compiled once: it does not depend on a table or plan.

    Args:
        base: int, address of the mapped file's first byte.
        stored: :class:`Stored`.
        windows: (n, V, 4) int32, inside the images.
        sides: (V,) int64, of the views.
        scratch: uint8, as long as the pixels of the largest image and the bytes of the longest JPEG.
        views: (n, view_bytes) uint8, written: each image's views (side, side, 3) in order.
        good: (n,) bool, written: False for a JPEG that cannot be decoded.
    """
    _announce(base, stored)
    handle, header = init_decompress(), np.empty(4, np.int32)
    for n in range(stored.begins.shape[0]):
        height, width = stored.sizes[n, 0], stored.sizes[n, 1]
        source = base + stored.begins[n]
        good[n] = True
        if stored.modes[n] == RAW:
            pixels = carray(pointer(source), (height, width, 3))
        else:
            pixels = scratch[: height * width * 3].reshape(height, width, 3)
        if stored.modes[n] == JPEG:
            _, bottom, _, _ = _union(windows[n])
            good[n] = _has_size(handle, source, stored.lengths[n], height, width, header) and _decode(
                handle, source, stored.lengths[n], height, width, bottom, scratch
            )
        elif stored.modes[n] == PLANES:
            planes_to_rgb_image(carray(pointer(source), (stored.lengths[n],)), pixels, *_union(windows[n]))
        if good[n]:
            crop_resize_image(pixels, windows[n], sides, views[n])
    destroy(handle)


@jit()
def decode_whole(base: Any, stored: Any, decoded: Any, good: Any) -> None:
    """Write JPEGs as pixels, and raw pixels and planes as they are, one after the other into ``decoded``, (n,) uint8.

    Those that cannot be decoded keep their place. The remaining arguments are those of :func:`decode_and_crop`.
    """
    _announce(base, stored)
    handle, header = init_decompress(), np.empty(4, np.int32)
    begin: Any = 0
    for n in range(stored.begins.shape[0]):
        height, width = stored.sizes[n, 0], stored.sizes[n, 1]
        source = base + stored.begins[n]
        good[n] = True
        if stored.modes[n] == JPEG:
            end = begin + height * width * 3
            target = decoded[begin:end].ctypes.data
            good[n] = (
                _has_size(handle, source, stored.lengths[n], height, width, header)
                and decompress(handle, source, stored.lengths[n], target, width, 0, height, RGB, 0) == 0
            )
        else:
            end = begin + stored.lengths[n]
            decoded[begin:end] = carray(pointer(source), (stored.lengths[n],))
        begin = end
    destroy(handle)


def decodes(data: bytes, height: int, width: int) -> bool:
    """Whether :func:`decode_and_crop` can decode this JPEG, whose header says ``height`` and ``width``."""
    content = np.frombuffer(data, np.uint8)
    pixels, good = np.empty(height * width * 3, np.uint8), np.zeros(1, np.bool_)
    stored = Stored(
        np.zeros(1, np.int64), np.array([len(data)]), np.array([JPEG], np.uint8), np.array([[height, width]], np.int64)
    )
    decode_whole(content.ctypes.data, stored, pixels, good)
    return bool(good[0])
