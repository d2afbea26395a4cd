"""Two image sets that were not made for this project, from the pictures of Debian packages (benchmarks.study.debian).

*Cluttered fashion*: an item of Fashion-MNIST, tinted, on a part of a desktop background. *Stamps in scenes*: one
to four cut-out photographs of animals, plants and things on such a background; the largest has the label's class, the
remaining ones have others, and it may touch or leave the border. Each item, stamp and part of a background is in one
split alone.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from benchmarks.study.debian import BACKGROUNDS, FASHION, STAMPS, unpacked
from saga_fast.errors import SagaError

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
)
STAMP_FOLDERS = {
    "bird": ("animals/birds",),
    "clothes": ("clothes",),
    "fish": ("animals/fish",),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "insect": ("animals/insects",),
    "mammal": ("animals/mammals",),
    "tool": ("household/tools", "household/arttools"),
    "vegetable": ("food/vegetables",),
    "vehicle": ("vehicles", "military/vehicles"),
}
"""Class -> folders of its stamps; drawn ones (``cartoon``) are left out."""


@dataclass(frozen=True, kw_only=True)
class OutsideConfig:
    """An outside set.

    Attributes:
        kind: ``fashion`` or ``stamps``.
        side: of the images, pixels.
        object_side: range of the labelled object's longer side over the image's side.
        plate: paste each fashion item on an opaque rectangle, so that its box shows no background.
    """

    kind: Literal["fashion", "stamps"]
    num_train: int
    num_val: int
    side: int = 72
    object_side: tuple[float, float] = (0.4, 0.7)
    plate: bool = False
    seed: int = 0


def make_outside_data(root: Path, config: OutsideConfig, packages: Path) -> None:
    """Write the ImageFolder trees ``root/train`` and ``root/val``, each with ``boxes.json`` and ``shares.json``.

    ``boxes.json`` maps "class/file.jpg" to the labelled object's box [x_min, y_min, w, h], normalised; ``shares.json``
    to the fraction of the box that the object covers. A second call with the same config returns at once.

    Args:
        root: folder to write.
        config: number, size and kind of the images.
        packages: folder of the unpacked packages; what is missing is fetched.

    Raises:
        SagaError: ``root`` has other images, or a package cannot be had.
    """
    stamp = root / "outside_data.json"
    content = json.dumps(asdict(config), indent=2)
    if root.exists():
        if not stamp.is_file() or stamp.read_text() != content:
            raise SagaError(f"{root} exists and holds other images: delete it or name another folder")
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        complete = Path(scratch) / "set"
        for split, count in zip(SPLITS, (config.num_train, config.num_val), strict=True):
            _write_split(complete / split, split, count, config, packages)
        (complete / stamp.name).write_text(content)
        complete.rename(root)


def _write_split(folder: Path, split: Split, count: int, config: OutsideConfig, packages: Path) -> None:
    classes = FASHION_CLASSES if config.kind == "fashion" else tuple(STAMP_FOLDERS)
    for name in classes:
        (folder / name).mkdir(parents=True)
    boxes, shares = {}, {}
    for index in range(count):
        path = f"{classes[index % len(classes)]}/{index // len(classes):05d}.jpg"
        rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
        scene = _Scene(_background(split, packages, config.side, rng))
        render = _fashion_scene if config.kind == "fashion" else _stamp_scene
        render(scene, config, split, index, packages, rng)
        scene.image.save(folder / path, quality=90)
        boxes[path], shares[path] = scene.box(), scene.share
    (folder / "boxes.json").write_text(json.dumps(boxes))
    (folder / "shares.json").write_text(json.dumps(shares))


class _Scene:
    """An image, and the mask of the last pasted object."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.mask = Image.new("L", image.size)

    def paste(self, pixels: Image.Image, alpha: Image.Image, place: tuple[int, int]) -> None:
        self.image.paste(pixels, place, mask=alpha)
        self.mask = Image.new("L", self.image.size)
        self.mask.paste(alpha, place)

    def box(self) -> list[float]:
        left, top, right, bottom = self._rectangle()
        width, height = self.image.size
        return [left / width, top / height, (right - left) / width, (bottom - top) / height]

    @property
    def share(self) -> float:
        """The fraction of the box that the object covers."""
        return float((np.asarray(self.mask.crop(self._rectangle())) > 127).mean())

    def _rectangle(self) -> tuple[int, int, int, int]:
        rectangle = self.mask.point(lambda level: 255 * (level > 127)).getbbox()
        assert rectangle is not None, "an object without a visible pixel"
        return rectangle


def _fashion_scene(
    scene: _Scene, config: OutsideConfig, split: Split, index: int, packages: Path, rng: np.random.Generator
) -> None:
    items = _items(split, packages)[index % len(FASHION_CLASSES)]
    item = Image.fromarray(items[index // len(FASHION_CLASSES) % len(items)])
    side = round(config.side * rng.uniform(*config.object_side))
    item = item.crop(item.point(lambda level: 255 * (level > 16)).getbbox())
    item = _resized(item, side)
    alpha = item.point(lambda level: min(255, 6 * level))
    if config.plate:
        alpha = Image.new("L", item.size, 255)
    place = rng.integers(np.asarray(scene.image.size) - np.asarray(item.size) + 1)
    scene.paste(_tinted(item.convert("RGB"), rng), alpha, (int(place[0]), int(place[1])))


def _stamp_scene(
    scene: _Scene, config: OutsideConfig, split: Split, index: int, packages: Path, rng: np.random.Generator
) -> None:
    stamps, label = _stamps(split, packages), index % len(STAMP_FOLDERS)
    others = [(label + int(rng.integers(1, len(stamps)))) % len(stamps) for _ in range(int(rng.integers(4)))]
    for number in (*others, label):
        stamp = stamps[number][int(rng.integers(len(stamps[number])))]
        low, high = config.object_side
        side = config.side * rng.uniform(low, high) * (1.0 if number == label else 0.5)
        stamp = stamp.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
        stamp = _resized(stamp.crop(stamp.getchannel("A").getbbox()), round(side))
        stamp = ImageOps.mirror(stamp) if rng.random() < 0.5 else stamp
        # Up to a fifth of its width and height may lie outside the image.
        size, hidden = np.array(stamp.size), np.array(stamp.size) // 5
        place = rng.integers(-hidden, np.array(scene.image.size) - size + hidden + 1, dtype=np.int64)
        scene.paste(stamp.convert("RGB"), stamp.getchannel("A"), (int(place[0]), int(place[1])))


def _resized(image: Image.Image, side: int) -> Image.Image:
    """The image with ``side`` as its longer side, pixels."""
    scale = side / max(image.size)
    size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _tinted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Map [0, 255] of each channel to a random [low, high], and mirror with probability 0.5."""
    low, high = rng.uniform(0, 80, 3), rng.uniform(130, 255, 3)
    levels = np.rint(low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 256)).astype(int)
    image = image.point(levels.ravel().tolist())
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _background(split: Split, packages: Path, side: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a background's part for the split: the left two thirds, or the right one."""
    pictures = _pictures(packages)
    picture = pictures[int(rng.integers(len(pictures)))]
    edge = round(picture.width * 2 / 3)
    first, last = (0, edge) if split == "train" else (edge, picture.width)
    crop = rng.uniform(0.3, 0.9) * min(last - first, picture.height)
    left, top = rng.uniform(first, last - crop), rng.uniform(0, picture.height - crop)
    box = (left, top, left + crop, top + crop)
    square = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(square) if rng.random() < 0.5 else square


@cache
def _pictures(packages: Path) -> list[Image.Image]:
    """The photographs of the backgrounds, 400 px high."""
    folder = unpacked(BACKGROUNDS, packages) / "usr/share/backgrounds/mate/nature"
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    return [picture.resize((round(400 * picture.width / picture.height), 400)) for picture in pictures]


@cache
def _items(split: Split, packages: Path) -> list[npt.NDArray[np.uint8]]:
    """The items of each class: (N, 28, 28)."""
    folder = unpacked(FASHION, packages) / "usr/share/datasets/fashion-mnist"
    name = "train" if split == "train" else "t10k"
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{name}-{kind}.gz").read_bytes()), np.uint8, offset=offset)
        for kind, offset in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
    )
    return [images.reshape(-1, 28, 28)[labels == label] for label in range(len(FASHION_CLASSES))]


@cache
def _stamps(split: Split, packages: Path) -> list[list[Image.Image]]:
    """The stamps of each class, RGBA, at most 160 px: every third one is in ``val``."""
    root = unpacked(STAMPS, packages) / "usr/share/tuxpaint/stamps"
    return [list(_class_stamps(root, folders, split)) for folders in STAMP_FOLDERS.values()]


def _class_stamps(root: Path, folders: tuple[str, ...], split: Split) -> Iterator[Image.Image]:
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.png") if "cartoon" not in path.parts)
    for number, path in enumerate(paths):
        if (number % 3 == 2) == (split == "val"):
            stamp = Image.open(path).convert("RGBA")
            stamp = stamp.crop(stamp.getchannel("A").getbbox())
            stamp.thumbnail((160, 160))
            yield stamp
