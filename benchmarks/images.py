"""Generated photographs that cost an image loader as much as ImageNet's: 500 x 375 JPEGs of about 108 kB.

Random crops of the photographs that scikit-image and scikit-learn carry, enlarged to the size asked for. That makes
them soft, 30 to 90 kB at quality 95, so grain is added until the file has ImageNet's bytes per pixel, because entropy
decoding is half of a decoder's time and goes by the bytes.
"""

from __future__ import annotations

import io
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

PHOTOS = {
    "skimage": ("data", "astronaut.png chelsea.png coffee.png ihc.png motorcycle_left.png retina.jpg rocket.jpg"),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}
QUALITY = 95
BYTES_PER_PIXEL = 108_000 / (500 * 375)
TOLERANCE = 0.06  # of the bytes; 101 to 115 kB at 500 x 375
CLASSES = 10
SEED = 0


def make_images(folder: Path, count: int, *, width: int = 500, height: int = 375) -> Path:
    """An ImageFolder tree of ``count`` JPEGs, made on the first call: 600 of 500 x 375 take about 8 s.

    Image i depends on its size and i alone. The tree appears whole or not at all.

    Args:
        folder: where the trees of all sizes and counts lie.
        count: images, spread over ten classes.
        width, height: of every image, pixels.

    Returns:
        The tree, ``folder/WIDTHxHEIGHT_COUNT``.
    """
    root = folder / f"{width}x{height}_{count}"
    stamp = {"count": count, "quality": QUALITY, "bytes_per_pixel": BYTES_PER_PIXEL, "photos": PHOTOS, "seed": SEED}
    described = json.dumps(stamp, indent=1)
    if root.exists():
        if (root / "images.json").read_text() != described:
            raise ValueError(f"{root} holds images of another recipe: delete it or name another folder")
        return root
    folder.mkdir(parents=True, exist_ok=True)
    photos = _load_photos()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        whole = Path(scratch) / "whole"
        for i in range(count):
            path = whole / f"class_{i % CLASSES}" / f"{i:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_render(photos, i, width, height))
        (whole / "images.json").write_text(described)
        whole.rename(root)
    return root


def cloud_jpegs(count: int, *, width: int = 500, height: int = 375) -> list[bytes]:
    """JPEGs of as many bytes without the photographs, for a machine that lacks them: grain on coloured clouds."""
    rng = np.random.default_rng([SEED, width, height])
    jpegs = []
    for coarse in rng.integers(0, 256, (count, 6, 8, 3), np.uint8):
        cloud = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.standard_normal((height, width, 1), np.float32)
        jpegs.append(_encode_to_size(np.asarray(cloud, np.float32), grain, BYTES_PER_PIXEL * width * height))
    return jpegs


def _load_photos() -> list[Image.Image]:
    photos = []
    for package, (folder, names) in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the photographs come with {package}: pip install 'saga-fast[demo]'")
        photos += [Image.open(Path(spec.origin).parent / folder / name).convert("RGB") for name in names.split()]
    return photos


def _render(photos: list[Image.Image], index: int, width: int, height: int) -> bytes:
    """A random crop of half to all of a photograph's side, mirrored or not, as JPEG."""
    rng = np.random.default_rng([SEED, width, height, index])
    photo = photos[rng.integers(len(photos))]
    crop_width = rng.uniform(0.5, 1.0) * min(photo.width, photo.height * width / height)
    crop_height = crop_width * height / width
    left, top = rng.uniform(0, photo.width - crop_width), rng.uniform(0, photo.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    image = photo.resize((width, height), Image.Resampling.BICUBIC, box=box)
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image
    grain = rng.standard_normal((height, width, 1), np.float32)
    return _encode_to_size(np.asarray(image, np.float32), grain, BYTES_PER_PIXEL * width * height)


def _encode_to_size(pixels: npt.NDArray[np.float32], grain: npt.NDArray[np.float32], target: float) -> bytes:
    """Bisect the grain's standard deviation, in levels, until the file has ``target`` bytes; the nearest end if none
    does: a small picture may be larger without grain."""
    low, high = 0.0, 16.0
    for _ in range(8):
        deviation = (low + high) / 2
        buffer = io.BytesIO()
        levels = np.clip(np.rint(pixels + deviation * grain), 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(buffer, "JPEG", quality=QUALITY)
        excess = buffer.tell() / target - 1.0
        if abs(excess) < TOLERANCE:
            break
        low, high = (low, deviation) if excess > 0 else (deviation, high)
    return buffer.getvalue()
