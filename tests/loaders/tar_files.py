"""Tar files for tests, and images to put into them."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from saga_fast.loaders import ImageFolder


def make_jpeg(number: int) -> bytes:
    """A JPEG of 20 + ``number`` rows of 31 random pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 31, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], *, mode: str = "w", style: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of members by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=style) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_folder(root: Path, count: int = 23) -> ImageFolder:
    """JPEGs of random pixels in three classes."""
    for number in range(count):
        path = root / f"class {number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_jpeg(number))
    return ImageFolder(root)


def write_shards(folder: ImageFolder, root: Path) -> Path:
    """A folder as ``00000.tar``, ``00001.tar`` and ``00002.tar``, the second one of a single image."""
    for number, part in enumerate((range(10), range(10, 11), range(11, len(folder)))):
        write_tar(root / f"{number:05}.tar", {f"./{folder.paths[index]}": folder.read(index) for index in part})
    return root
