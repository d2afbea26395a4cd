"""The JPEGs that DALI and nvJPEG decode like :func:`decode_image`, told by their markers.

The check is one compiled call for all files of a task, because a call gives Python's lock up and waits for it again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.kernels._jit import jit
from saga_fast.loaders.decode import FEW_SECONDS, MAX_PIXELS, MAX_SCANS
from saga_fast.loaders.encoded import EncodedImages

Int64 = npt.NDArray[np.int64]

_BASELINE, _EXTENDED, _PROGRESSIVE, _SCAN, _ADOBE = 0xC0, 0xC1, 0xC2, 0xDA, 0xEE


def jpeg_sizes(files: EncodedImages, max_pixels: int = MAX_PIXELS) -> Int64:
    """Height and width (n, 2) of JPEGs that DALI or nvJPEG may decode; 0 for other files: :func:`decode_image` does.

    DALI stops reading where its rectangle ends, so it does not notice a file that is damaged below. Therefore a file
    must end with its end marker, and a baseline file must hold no markers but restarts among its pixels (a progressive
    one is always read whole). With both rules, of 20,000 JPEGs with some changed bytes DALI accepted none that
    ``decode_image`` refused. Grey and YCbCr images of 8 bits have equal pixels in both; CMYK differs by a level, and
    not every decoder knows a JPEG whose three components are RGB, by Adobe's marker or the components' names.
    """
    sizes = np.zeros((len(files), 2), np.int64)
    _read_sizes(files.memory, files.begins, files.lengths, max_pixels, sizes)
    return sizes


@jit()
def _read_sizes(memory: Any, begins: Any, lengths: Any, max_pixels: Any, sizes: Any) -> None:
    for n in range(begins.shape[0]):
        _read_size(memory[begins[n] : begins[n] + lengths[n]], max_pixels, sizes[n])


@jit()
def _read_size(values: Any, max_pixels: Any, size: Any) -> None:
    """Write the size (2,) of a file, (n,) uint8, that may be decoded; otherwise leave zeros."""
    end = values.shape[0]
    if end < 4 or values[0] != 0xFF or values[1] != 0xD8 or values[end - 2] != 0xFF or values[end - 1] != 0xD9:
        return
    at, frame, components, untransformed = 2, 0, 0, False
    height, width = 0, 0
    while at + 10 <= end and values[at] == 0xFF:
        marker = values[at + 1]
        if not _has_segment(marker):
            return
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            if frame != 0:
                return  # two sizes
            frame, components = marker, values[at + 9]
            height = 256 * np.int64(values[at + 5]) + values[at + 6]
            width = 256 * np.int64(values[at + 7]) + values[at + 8]
            if values[at + 4] != 8 or not (components == 1 or components == 3):
                return
            if not 0 < height * width <= max_pixels:
                return
            untransformed |= at + 17 <= end and _is_rgb(values, at + 10)
        if marker == _ADOBE and at + 16 <= end and _is_adobe(values, at + 4):
            untransformed |= values[at + 15] == 0
        at += 2 + 256 * np.int64(values[at + 2]) + values[at + 3]
        if marker == _SCAN:
            if at >= end - 2 or (components == 3 and untransformed):
                return
            fits = _has_few_scans(values, height * width) if frame == _PROGRESSIVE else _only_restarts(values, at)
            if fits:
                size[0], size[1] = height, width
            return


@jit()
def _has_segment(marker: Any) -> Any:
    """False for lossless, hierarchical and arithmetic frames, and for markers that have no place before the pixels."""
    other_frame = marker == 0xC3 or (0xC5 <= marker <= 0xCF)
    alone = marker in (0x00, 0x01, 0xFF) or (0xD0 <= marker <= 0xD9)
    return not (other_frame or alone)


@jit()
def _is_rgb(values: Any, at: Any) -> Any:
    """Whether the three components that begin at ``at`` are named R, G and B."""
    return values[at] == 0x52 and values[at + 3] == 0x47 and values[at + 6] == 0x42


@jit()
def _is_adobe(values: Any, at: Any) -> Any:
    begins = values[at] == 0x41 and values[at + 1] == 0x64 and values[at + 2] == 0x6F  # "Ado"
    return begins and values[at + 3] == 0x62 and values[at + 4] == 0x65  # "be"


@jit()
def _only_restarts(values: Any, start: Any) -> Any:
    """Whether the bytes from ``start`` to the end marker hold no other marker than restarts."""
    others: Any = np.uint8(0)
    above, below = values[start:-2], values[start + 1 : -1]
    for i in range(above.shape[0]):  # without branches: 16 bytes at a time
        marker, restart = (above[i] == 0xFF) & (below[i] != 0), (below[i] >= 0xD0) & (below[i] <= 0xD7)
        others |= np.uint8(marker & ~restart)
    return others == 0


@jit()
def _has_few_scans(values: Any, pixels: Any) -> Any:
    """See :func:`saga_fast.loaders.decode.check_scans`."""
    if np.float64(values.shape[0]) * pixels < FEW_SECONDS:
        return True
    scans = 0
    for i in range(values.shape[0] - 1):
        scans += values[i] == 0xFF and values[i + 1] == _SCAN
    return scans <= MAX_SCANS
