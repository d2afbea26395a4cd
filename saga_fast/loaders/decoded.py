"""The pixels of a task's images: usual JPEGs in one block of memory, where they are cropped or uploaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from saga_fast.loaders.decode import DecodeError, Pixels, decode_image
from saga_fast.loaders.encoded import EncodedImages, read_images
from saga_fast.loaders.jpeg import jpeg_sizes
from saga_fast.loaders.source import Source

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DecodedImages:
    """n images (H, W, 3) uint8, most of them one after the other in one block of memory.

    Attributes:
        memory: (bytes,) uint8 on the CPU.
        begins: (n,) int64, where an image begins in the memory.
        sizes: (n, 2) int64, height and width; 1 x 1 for an image without pixels.
        inside: (n,) bool, whether an image lies in the memory.
        elsewhere: positions of the other images -> pixels.
        errors: positions of the images that could not be read or decoded -> why.
    """

    memory: torch.Tensor
    begins: Int64
    sizes: Int64
    inside: npt.NDArray[np.bool_]
    elsewhere: Mapping[int, Pixels]
    errors: Mapping[int, str]


def load_images(
    source: Source, indices: Int64, max_pixels: int, new_memory: Callable[[int], torch.Tensor]
) -> DecodedImages:
    """Read and decode images of a data set, (n,) int64, as :func:`saga_fast.loaders.decode.read_pixels` does.

    Args:
        source, indices, max_pixels: see there.
        new_memory: makes memory (bytes,) uint8 on the CPU.

    Raises:
        MemoryError, OSError: memory or file descriptors are exhausted, which says nothing about an image.
    """
    files = read_images(source, indices)
    sizes = jpeg_sizes(files, max_pixels)
    lengths = 3 * sizes.prod(1)
    memory, begins = new_memory(int(lengths.sum())), np.cumsum(lengths) - lengths
    values, inside = memory.numpy(), np.zeros(len(indices), np.bool_)
    elsewhere, errors = dict[int, Pixels](), dict(files.errors)
    for n in range(len(indices)):
        inside[n] = lengths[n] and _decode_into(files, n, values[begins[n] : begins[n] + lengths[n]])
        if inside[n] or n in errors:
            continue
        try:
            elsewhere[n] = decode_image(files[n].tobytes(), max_pixels)
            sizes[n] = elsewhere[n].shape[:2]
        except DecodeError as error:
            errors[n] = str(error)
    sizes[list(errors)] = 1
    return DecodedImages(memory, begins, sizes, inside, elsewhere, errors)


def _decode_into(files: EncodedImages, n: int, memory: Pixels) -> bool:
    """Decode a JPEG of known size, whose scans have been counted; False if libjpeg-turbo refuses it."""
    try:
        simplejpeg.decode_jpeg(files[n], "RGB", buffer=memory)
    except ValueError:  # an error that libjpeg calls recoverable: Pillow decides whether it is an image
        return False
    return True
