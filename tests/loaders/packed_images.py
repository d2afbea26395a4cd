"""Packed images for the tests of the ffcv engine, and how these tests open them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from saga_fast.loaders import BadImages, Batch, CropPlan, Loader, LoaderOptions, Place, Plan, Source, open_loader

NDArray = npt.NDArray[Any]
N = 60
SIZE = 16
CROPS = CropPlan(size=SIZE, seed=5)
OPTIONS = LoaderOptions(batch_size=8, threads=2)
PLACES: tuple[Place, ...] = ("cpu", "gpu")
Columns = tuple[NDArray, NDArray, NDArray]


def make_folder(root: Path, suffixes: tuple[str, ...], *, subsampling: int | None = None) -> Path:
    """60 images of many sizes in three classes; JPEGs with every chroma subsampling or Pillow's number of one, some
    progressive, some grey."""
    rng = np.random.default_rng(0)
    for number in range(N):
        path = root / f"class {number % 3}" / f"{number:02}{suffixes[number % len(suffixes)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (1, 1) if number == 5 else rng.integers(1, 90, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        kind = number % 3 if subsampling is None else subsampling
        jpeg: dict[str, Any] = {"subsampling": kind, "progressive": number % 5 == 0}
        image.convert("L" if number % 7 == 1 else "RGB").save(path, **(jpeg if path.suffix == ".jpg" else {}))
    return root


def open_beton(
    path: Source | Path,
    plan: Plan = CROPS,
    options: LoaderOptions = OPTIONS,
    *,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    bad: BadImages | None = None,
) -> Loader:
    """The ffcv engine's loader of a .beton file."""
    return open_loader("ffcv", path, plan, options, batch_size=batch_size, shuffle=shuffle, bad=bad)


def joined(batches: Iterable[Batch]) -> Columns:
    """Views (M, V, S, S, 3), index (M,) and label (M,) of an epoch."""
    parts = [(batch.views.numpy(), batch.index.numpy(), batch.label.numpy()) for batch in batches]
    views, index, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    return views, index, label
