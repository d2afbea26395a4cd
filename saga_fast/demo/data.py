"""A small image set with known object boxes, from photographs in scikit-image and scikit-learn.

Each image is one object on a tinted texture, at a random place and small enough that a random crop often misses it:
the situation of the SAGA paper's Fig. 1. Nothing is downloaded, and the true boxes allow attention boxes to be scored.
Texture, place, size and tints do not depend on the class, so only the object determines it.
"""

import gzip
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from saga_fast.errors import SagaError
from saga_fast.loaders.config import DemoDataConfig
from saga_fast.loaders.true_boxes import find_true_boxes, true_boxes_file
from saga_fast.runtime.address import Location

_SKIMAGE = ("skimage", "data")
_SKLEARN = ("sklearn", "datasets", "images")
# Class -> path of its photograph, and a part (left, top, right, bottom) of which any half shows the object: crops of
# sky, table or black borders would look the same for several classes.
_PHOTOS: dict[str, tuple[tuple[str, ...], tuple[float, float, float, float]]] = {
    "astronaut": ((*_SKIMAGE, "astronaut.png"), (0.0, 0.0, 1.0, 1.0)),
    "chelsea": ((*_SKIMAGE, "chelsea.png"), (0.0, 0.0, 0.9, 1.0)),
    "china": ((*_SKLEARN, "china.jpg"), (0.05, 0.0, 0.6, 0.9)),
    "coffee": ((*_SKIMAGE, "coffee.png"), (0.1, 0.0, 0.85, 1.0)),
    "coins": ((*_SKIMAGE, "coins.png"), (0.02, 0.02, 0.98, 1.0)),
    "color_wheel": ((*_SKIMAGE, "color.png"), (0.14, 0.14, 0.86, 0.86)),
    "flower": ((*_SKLEARN, "flower.jpg"), (0.2, 0.1, 0.75, 0.95)),
    "horse": ((*_SKIMAGE, "horse.png"), (0.03, 0.0, 1.0, 0.97)),
    "ihc": ((*_SKIMAGE, "ihc.png"), (0.0, 0.0, 1.0, 1.0)),
    "motorcycle": ((*_SKIMAGE, "motorcycle_left.png"), (0.1, 0.1, 0.95, 0.95)),
    "retina": ((*_SKIMAGE, "retina.jpg"), (0.1, 0.12, 0.9, 0.88)),
    "rocket": ((*_SKIMAGE, "rocket.jpg"), (0.32, 0.2, 0.7, 1.0)),
}
_TEXTURES = ("brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg")
_SPLITS = ("train", "val")
_VERSION = 1  # of the recipe: a new version generates different images from the same config

CLASSES: dict[str, tuple[str, ...]] = {"photos": tuple(_PHOTOS), "digits": tuple("0123456789")}
"""Class names of each kind, in the order of their labels."""


class _Sources(NamedTuple):
    objects: dict[str, list[list[Image.Image]]]  # split -> class -> photographs (RGB) or digits (L, 8x8)
    textures: list[Image.Image]


def make_demo_data(root: Path, config: DemoDataConfig = DemoDataConfig()) -> None:
    """Write ``root/train`` and ``root/val`` as ImageFolder trees of JPEGs, each with its ``boxes.json``.

    ``boxes.json`` maps "class/file.jpg" to [x_min, y_min, w, h], normalised to [0, 1]: the pasted rectangle, which for
    digits is the rectangle around the ink. The classes' sizes differ by at most one image. Image i of a split depends
    on (seed, split, i) alone, so a larger set starts with the images of a smaller one. The folder is written
    atomically, and a second call with the same config returns at once.

    Args:
        root: folder to write; it must be missing, empty, or contain the same demo data.
        config: number, size and kind of the images.

    Raises:
        SagaError: ``root`` contains something else, or scikit-image or scikit-learn is not installed.
    """
    root = root.resolve()
    if _exists(root, config):
        return
    sources = _load_sources(config)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
        # A folder inside, because other users cannot read the folder of mkdtemp.
        complete = Path(scratch) / "demo"
        for split, number in zip(_SPLITS, (config.num_train, config.num_val), strict=True):
            _write_split(complete / split, split, number, sources, config)
        (complete / "demo_data.json").write_bytes(_stamp(config))
        try:
            complete.rename(root)
        except OSError:
            # Another process may have written the same data in the meantime.
            if not _exists(root, config):
                raise


def demo_boxes(source_root: Location, paths: Sequence[str]) -> npt.NDArray[np.float32]:
    """The true box of each image: (N, 4) float32 [x_min, y_min, w, h], normalised.

    Args:
        source_root: a split's folder, or the .beton file that was packed from it.
        paths: N paths relative to the folder, with forward slashes.

    Raises:
        SagaError: no file of true boxes, or no box or several boxes for one of the paths.
    """
    file = true_boxes_file(source_root)
    boxes = find_true_boxes(file, paths)
    wrong = [path for path in paths if len(boxes.get(path, ())) != 1]
    if wrong:
        count = len(boxes.get(wrong[0], ()))
        raise SagaError(f"{file} has {count} boxes for {wrong[0]!r}, not one ({len(wrong)} of {len(paths)} images)")
    return np.concatenate([np.empty((0, 4), np.float32), *(boxes[path] for path in paths)])


def _stamp(config: DemoDataConfig) -> bytes:
    """The content of demo_data.json, which identifies the data."""
    fields = asdict(config)
    if not config.distractor:
        del fields["distractor"]  # older data have the same images and no such field
    stamp = {"format": "saga-fast/demo-data", "version": _VERSION, "config": fields}
    return json.dumps(stamp, indent=2).encode()


def _exists(root: Path, config: DemoDataConfig) -> bool:
    """Whether ``root`` contains this demo data.

    Raises:
        SagaError: it contains something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    stamp = root / "demo_data.json"
    if not stamp.is_file():
        raise SagaError(f"{root} exists and is not demo data: name another folder")
    if stamp.read_bytes() != _stamp(config):
        raise SagaError(f"{root} holds demo data of another config: delete it or name another folder")
    return True


def _data_file(*parts: str) -> Path:
    """The path of a file in an installed package; the functions of skimage.data may download it."""
    spec = find_spec(parts[0])
    if not (spec and spec.origin and (path := Path(spec.origin).parent.joinpath(*parts[1:])).is_file()):
        raise SagaError(f"demo data needs {'/'.join(parts)}, which is missing: pip install 'saga-fast[demo]'")
    return path


def _load_sources(config: DemoDataConfig) -> _Sources:
    textures = [Image.open(_data_file(*_SKIMAGE, name)).convert("RGB") for name in _TEXTURES]
    # Stretched to the full range: 98 % of brick has levels 82 to 189, too little contrast to distract from an object.
    textures = [ImageOps.autocontrast(texture, cutoff=1) for texture in textures]
    if config.kind == "digits":
        return _Sources(_load_digits(), textures)
    photos = [[_load_photo(name, config)] for name in _PHOTOS]
    return _Sources(dict.fromkeys(_SPLITS, photos), textures)


def _load_photo(name: str, config: DemoDataConfig) -> Image.Image:
    """The part of a photograph with the object, shrunk to 3 times the size of the largest pasted object.

    That makes patches 8 times faster.
    """
    parts, (left, top, right, bottom) = _PHOTOS[name]
    photo = Image.open(_data_file(*parts)).convert("RGB")
    width, height = photo.size
    photo = photo.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    # The smallest crop is about half the shorter side: at 3 times the largest object, no crop is enlarged.
    scale = min(1.0, 3 * config.object_side[1] * config.side / min(photo.size))
    return photo.resize((round(scale * photo.width), round(scale * photo.height)), Image.Resampling.LANCZOS)


def _load_digits() -> dict[str, list[list[Image.Image]]]:
    with gzip.open(_data_file("sklearn", "datasets", "data", "digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 64 levels, 0 to 16, then the label
    glyphs = np.minimum(table[:, :-1], 15).reshape(-1, 8, 8) * np.uint8(17)
    by_class = [[Image.fromarray(glyph) for glyph in glyphs[table[:, -1] == label]] for label in range(10)]
    # The first quarter of the file, not a random one: successive digits are often from one writer, who should be in one
    # split only.
    return {
        "train": [digits[len(digits) // 4 :] for digits in by_class],
        "val": [digits[: len(digits) // 4] for digits in by_class],
    }


def _write_split(folder: Path, split: str, number: int, sources: _Sources, config: DemoDataConfig) -> None:
    classes = CLASSES[config.kind]
    for name in classes:
        (folder / name).mkdir(parents=True)
    boxes = {}
    for index in range(number):
        path = f"{classes[index % len(classes)]}/{index // len(classes):05d}.jpg"
        image, (left, top, width, height) = _render(sources, config, split, index)
        image.save(folder / path, quality=config.quality)
        boxes[path] = [left / config.side, top / config.side, width / config.side, height / config.side]
    (folder / "boxes.json").write_text(json.dumps(boxes))


def _rng(config: DemoDataConfig, split: str, index: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(config.seed, spawn_key=(_SPLITS.index(split), index))
    return np.random.Generator(np.random.Philox(sequence))


def _render(sources: _Sources, config: DemoDataConfig, split: str, index: int) -> tuple[Image.Image, tuple[int, ...]]:
    """Image ``index`` of a split, and the rectangle (left, top, width, height) of its object in pixels."""
    rng = _rng(config, split, index)
    image = _background(sources.textures, config.side, rng)
    objects = sources.objects[split][index % len(CLASSES[config.kind])]
    source = objects[rng.integers(len(objects))]
    side = round(config.side * rng.uniform(*config.object_side))
    patch = _photo_patch(source, side, rng) if config.kind == "photos" else _digit_ink(source, side, rng)
    width, height = patch.size
    left, top = int(rng.integers(config.side - width + 1)), int(rng.integers(config.side - height + 1))
    if config.kind == "photos":
        if config.distractor:
            _paste_distractor(image, sources.objects[split], index, (left, top, width, height), config, rng)
        image.paste(patch, (left, top))
    else:
        background = image.crop((left, top, left + width, top + height))
        image.paste(_stroke_colour(background, rng), (left, top), mask=patch)
    return image, (left, top, width, height)


def _paste_distractor(
    image: Image.Image,
    photos: list[list[Image.Image]],
    index: int,
    box: tuple[int, int, int, int],
    config: DemoDataConfig,
    rng: np.random.Generator,
) -> None:
    """Paste a smaller object of another class, if possible outside the ``box`` of the labelled object."""
    distractor = photos[(index + int(rng.integers(1, len(photos)))) % len(photos)]
    side = round(0.6 * config.side * rng.uniform(*config.object_side))
    patch = _photo_patch(distractor[0], side, rng)
    places = rng.integers(config.side - side + 1, size=(20, 2))
    near, far = np.array(box[:2]), np.array(box[:2]) + box[2:]
    is_outside = ((places + side <= near) | (places >= far)).any(1)
    left, top = places[int(is_outside.argmax())]  # the first place outside the box, or the first place
    image.paste(patch, (int(left), int(top)))


def _background(textures: list[Image.Image], side: int, rng: np.random.Generator) -> Image.Image:
    texture = textures[rng.integers(len(textures))]
    crop = min(texture.size) * rng.uniform(0.2, 0.7)
    left, top = rng.uniform(0, texture.width - crop), rng.uniform(0, texture.height - crop)
    box = (left, top, left + crop, top + crop)
    return _tint_and_mirror(texture.resize((side, side), Image.Resampling.BICUBIC, box=box), rng)


def _photo_patch(photo: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A rotated square of the photograph, (side, side) pixels, without pixels from outside the photograph."""
    angle = math.radians(rng.uniform(-30, 30))
    cos, sin = math.cos(angle), math.sin(angle)
    reach = cos + abs(sin)  # side of the upright square around a rotated unit square
    crop = min(photo.size) * rng.uniform(0.5, 1 / reach)
    x = rng.uniform(crop * reach / 2, photo.width - crop * reach / 2)
    y = rng.uniform(crop * reach / 2, photo.height - crop * reach / 2)
    # Sampled at the photograph's resolution, then shrunk with a filter: transform() alone would cause aliasing.
    fine = max(side, round(crop))
    a, b = crop / fine * cos, crop / fine * sin
    affine = (a, -b, x - (a - b) * fine / 2, b, a, y - (a + b) * fine / 2)
    rotated = photo.transform((fine, fine), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return _tint_and_mirror(rotated.resize((side, side), Image.Resampling.BICUBIC), rng)


def _tint_and_mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Map [0, 255] of each channel to a random [low, high], and mirror with probability 0.5."""
    low, high = rng.uniform(0, 50, 3), rng.uniform(150, 255, 3)
    table = np.rint(low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 256)).astype(int)
    image = image.point(table.ravel().tolist())
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _digit_ink(digit: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """The ink of a slightly rotated digit (L), upscaled and cropped; its longer side is ``side`` pixels."""
    smooth = ImageOps.expand(digit, 2).resize((144, 144), Image.Resampling.BICUBIC)
    smooth = smooth.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    # A steep ramp at half of the ink's range gives the 8x8 digit the edges of a pen stroke.
    ink = smooth.point([min(255, max(0, round((level - 90) * 3.2))) for level in range(256)])
    ink = ink.crop(ink.point([0] * 128 + [255] * 128).getbbox())
    scale = side / max(ink.size)
    size = (max(1, round(scale * ink.width)), max(1, round(scale * ink.height)))
    return ink.resize(size, Image.Resampling.BICUBIC)


def _stroke_colour(background: Image.Image, rng: np.random.Generator) -> tuple[int, ...]:
    """The one of 6 random colours whose luma differs most from that of the background."""
    colours = rng.integers(0, 256, (6, 3))
    luma = np.array([0.299, 0.587, 0.114])
    contrast = np.abs(colours @ luma - np.asarray(background).mean((0, 1)) @ luma)
    return tuple(colours[np.argmax(contrast)].tolist())
