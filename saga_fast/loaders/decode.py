"""From encoded bytes to RGB pixels, equal for all engines: EXIF orientation is ignored, all colour modes become RGB.

simplejpeg (libjpeg-turbo) decodes what it can: 0.87 ms of CPU time for a 500 x 375 JPEG where torchvision.io takes 0.98
and Pillow 1.1; a 72 px one 0.045, 0.052 and 0.15. It releases the GIL. Pillow decodes all other images.
"""

from __future__ import annotations

import errno
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from saga_fast.loaders.source import Source

MAX_PIXELS = 89_478_485
"""Larger images are refused before memory is allocated: Pillow warns of a decompression bomb from here on."""

MAX_BYTES = 2**30
"""Longer files are refused unread: no format takes more than 8 bytes per pixel, for MAX_PIXELS pixels."""

MAX_SCANS = 100
"""Limit of a JPEG's scans: a scan takes 30 bytes of file and a pass over all pixels; encoders write 10 scans."""

FEW_SECONDS = 2e10
"""Bytes times pixels of a JPEG below which its scans are not counted: as many as fit into it take some seconds."""

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow may detect, by content. It knows 40 more; for EPS it would start Ghostscript."""

Pixels = npt.NDArray[np.uint8]

EXHAUSTED = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
"""Errors of a read that mean that the machine is short of something, not that the file is bad."""


class DecodeError(Exception):
    """The bytes cannot be decoded as an image; the message says why."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The RGB pixels of one encoded image.

    Args:
        data: the file's content: JPEG, PNG, WebP, BMP, PPM, TIFF, GIF, in any colour mode.
        max_pixels: limit of height times width, at most MAX_PIXELS.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous and writable. Grey, CMYK and palette images become RGB; alpha is dropped;
        16 bits per channel are cut to the upper 8; see :func:`_to_8_bits` for grey TIFFs, which do not say their range.

    Raises:
        DecodeError: empty, truncated or unknown data, more than ``max_pixels`` pixels, more than MAX_SCANS scans, or
            numbers whose range is unknown.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(width, height, max_pixels)
            check_scans(data, width * height)
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
        except ValueError as error:
            if "nsufficient memory" in str(error):
                raise MemoryError(str(error)) from error
            # an error that libjpeg calls recoverable: Pillow decides whether it is an image
    return _decode_pillow(data, max_pixels)


def read_pixels(source: Source, index: int, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The pixels (H, W, 3) uint8 of an image of a data set.

    Raises:
        DecodeError: the image cannot be read or decoded; the message says why.
        MemoryError, OSError: memory or file descriptors are exhausted, which says nothing about the image.
    """
    return decode_image(read_bytes(source, index), max_pixels)


def read_bytes(source: Source, index: int) -> bytes:
    """The encoded bytes of an image of a data set.

    Raises:
        DecodeError: the image cannot be read.
        OSError: file descriptors or memory are exhausted.
    """
    try:
        return source.read(index)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        raise DecodeError(str(error)) from error


def check_scans(data: bytes, pixels: int) -> None:
    """
    Raises:
        DecodeError: a JPEG file of more than MAX_SCANS scans.
    """
    if len(data) * pixels < FEW_SECONDS:
        return
    # Within a scan 0xFF is followed by 0 or a restart marker, so this counts scans, including the thumbnail's.
    values = np.frombuffer(data, np.uint8)  # bytes.count takes 20 times as long
    scans = np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))
    if scans > MAX_SCANS:
        raise DecodeError(f"{scans} scans are more than {MAX_SCANS}")


def _decode_pillow(data: bytes, max_pixels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels)
            if image.format in ("JPEG", "MPO"):
                check_scans(data, image.width * image.height)
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                # PNG and PGM say their range, which Pillow scales to 16 bits; TIFF does not.
                levels = _to_8_bits(np.asarray(image), has_16_bits=image.format in ("PNG", "PPM"))
                return np.repeat(levels[..., None], 3, axis=2)
            # A palette with transparency goes through RGBA, as Pillow advises; straight to RGB it warns.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            return np.array(opaque.convert("RGB"))
    except (DecodeError, MemoryError):  # memory that is short now says nothing about the image
        raise
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        unknown = isinstance(error, UnidentifiedImageError)  # whose text holds an address in memory
        raise DecodeError("not an image in a known format" if unknown else _one_line(error)) from error
    except Exception as error:  # Pillow raises whatever its parsers trip over; the caller needs one kind
        raise DecodeError(_one_line(error)) from error


def _to_8_bits(grey: npt.NDArray[Any], *, has_16_bits: bool) -> Pixels:
    """The levels of a grey image of more than 8 bits.

    Args:
        grey: (H, W) integers, or floats.
        has_16_bits: the range is known to be 0 to 65535. Otherwise the values tell: floats are in [0, 1] or [0, 255],
            integers in 0 to 255 or 0 to 65535.

    Raises:
        DecodeError: values outside of these ranges, or NaN.
    """
    low, high = grey.min(), grey.max()
    levels: npt.NDArray[Any]
    if grey.dtype.kind == "f":
        if not (low >= 0.0 and high <= 255.0):  # NaN, too
            raise DecodeError(f"floats from {low:g} to {high:g}: expected [0, 1] or [0, 255]")
        levels = np.rint(grey * 255.0 if high <= 1.0 else grey)
    else:
        if low < 0 or high > 65535:
            raise DecodeError(f"integers from {low} to {high}: expected 0 to 255 or 0 to 65535")
        levels = grey >> 8 if has_16_bits or high > 255 else grey
    return levels.astype(np.uint8)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} pixels are more than {max_pixels}")
