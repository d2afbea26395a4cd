"""Encoded bytes to RGB pixels, the same for every engine: EXIF orientation ignored, every colour mode to RGB.

simplejpeg (libjpeg-turbo) decodes what it can: 0.87 ms of CPU time for a 500 x 375 JPEG where torchvision.io takes 0.98
and Pillow 1.1; a 72 px one 0.045, 0.052 and 0.15. It hands back the GIL while it works. Pillow takes the rest.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""More pixels than this (where Pillow warns of a decompression bomb) are refused before memory is taken for them."""

Pixels = npt.NDArray[np.uint8]


class DecodeError(Exception):
    """The bytes are not an image that can be decoded; the message says why."""


def decode_image(data: bytes) -> Pixels:
    """Decode one image.

    Args:
        data: the file's content: JPEG, PNG, WebP, BMP, PPM, TIFF, in any colour mode.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous and writable. Grey, CMYK and palette images become RGB; alpha is dropped;
        16 bits per channel are cut to the upper 8.

    Raises:
        DecodeError: empty, truncated or unknown data, or more than MAX_PIXELS pixels.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(width, height)
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
        except ValueError:
            pass  # something that libjpeg calls a recoverable error: Pillow knows which of them are an image
    return _decode_pillow(data)


def _decode_pillow(data: bytes) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(*image.size)
            if image.mode.startswith("I"):
                grey: Any = np.asarray(image).astype(np.int64)
                levels = np.clip(grey >> 8, 0, 255).astype(np.uint8)
                return np.repeat(levels[..., None], 3, axis=2)
            # A palette with transparency goes through RGBA, as Pillow advises; straight to RGB it warns.
            opaque = image.convert("RGBA") if "transparency" in image.info else image
            return np.array(opaque.convert("RGB"))
    except DecodeError:
        raise
    except UnidentifiedImageError as error:  # whose text holds an address in memory
        raise DecodeError("not an image in a known format") from error
    except Exception as error:  # Pillow raises whatever its parsers trip over; the caller needs one kind
        raise DecodeError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
