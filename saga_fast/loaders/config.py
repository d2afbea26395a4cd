"""The config's ``data`` and ``crop``: where images come from, how they are read, and how views are cropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from saga_fast.loaders.decode import MAX_PIXELS
from saga_fast.loaders.loader import Place
from saga_fast.runtime.address import is_address, public_address

MAX_SIDE = 16384
"""Of views and images, pixels."""
MAX_THREADS = 4096
"""Also of batches decoded ahead."""

DEMO_CLASSES = {"photos": 12, "digits": 10}
"""Number of classes of each kind of demo images."""


@dataclass(frozen=True, kw_only=True)
class DemoDataConfig:
    """The demo's images.

    ``photos`` pastes sub-crops of 12 photographs; train and val share the photographs, never a crop. ``digits`` is
    harder: 10 classes of handwritten strokes in a random colour; no glyph is in both.

    Attributes:
        kind: ``photos`` or ``digits``.
        num_train: images in ``train``, at least one per class.
        num_val: images in ``val``, at least one per class.
        side: side of the square images in pixels.
        object_side: range of the object's longer side as a fraction of ``side``.
        distractor: add a second, unlabelled object of another class, like the man with the fish in the SAGA paper's
            Fig. 1. Its side is 0.6 times that of an object; where it does not fit next to the labelled object, that
            one covers it. ``photos`` only.
        quality: JPEG quality, 1 to 100.
        seed: of all draws.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Literal["photos", "digits"] = "photos"
    num_train: int = 2000
    num_val: int = 600
    side: int = 72
    object_side: tuple[float, float] = (0.36, 0.64)
    distractor: bool = False
    quality: int = 90
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in DEMO_CLASSES:
            raise ValueError(f"kind must be one of {', '.join(DEMO_CLASSES)}, got {self.kind!r}")
        num_classes = DEMO_CLASSES[self.kind]
        for name, number in (("num_train", self.num_train), ("num_val", self.num_val)):
            if not num_classes <= number <= 2**24:
                raise ValueError(f"{name} must be {num_classes}, one image per class, to 2**24, got {number}")
        if self.side > MAX_SIDE:
            raise ValueError(f"side must be at most {MAX_SIDE}, got {self.side}")
        low, high = self.object_side
        if not 0 < low <= high <= 1:
            raise ValueError(f"object_side must be 0 < low <= high <= 1, got {self.object_side}")
        if round(low * self.side) < 8:
            raise ValueError(f"side * object_side[0] must be at least 8 pixels, got {self.side} * {low}")
        if self.distractor and self.kind != "photos":
            raise ValueError(f"distractor is for photos, got {self.kind!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are read."""

    train: str
    """Training images: a folder, CLASS/*.jpg or images without classes, or another source of docs/data.md."""
    val: str | None = None
    """Validation images with the same classes, for kNN during training."""
    cache: str | None = None
    """Folder for copies of remote files and of parquet files as Arrow; null: remote tar files are not copied."""
    classes: str | None = None
    """Text file whose lines begin with the class folders to use (ImageNet-100's list); null: all."""
    true_boxes: bool = False
    """Report the IoU of the attention boxes with the true boxes of ``train``'s boxes.json."""
    generate: DemoDataConfig | None = None
    """Make the demo's images in the parent folder of ``train`` before training, unless they exist."""
    engine: str = "folder"
    """Loader engine: ``folder``, ``ffcv`` or ``dali``."""
    decode: Place = "auto"
    """Where images are decoded: ``cpu``, ``gpu``, or ``auto``, the engine's default for the device."""
    crop: Place = "auto"
    """Where views are cropped, likewise."""
    threads: int | None = None
    """Decoding threads; null: the processor cores that the process may use."""
    prefetch: int = 2
    """Batches decoded ahead."""
    max_bad_fraction: float = 0.01
    """Allowed fraction of undecodable images: more of them stop the run."""
    max_pixels: int = MAX_PIXELS
    """Larger images count as undecodable; at most the default."""

    def __post_init__(self) -> None:
        if is_address(self.train) and (self.generate is not None or self.true_boxes):
            key = "generate" if self.generate is not None else "true_boxes"
            raise ValueError(f"data.{key} needs a folder, and train is an address: {public_address(self.train)}")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"max_pixels must be in 1 to {MAX_PIXELS}, got {self.max_pixels}")
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {self.max_bad_fraction}")
        for name, number, least in (("threads", self.threads, 1), ("prefetch", self.prefetch, 0)):
            if number is not None and not least <= number <= MAX_THREADS:
                raise ValueError(f"{name} must be in {least} to {MAX_THREADS}, got {number}")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random resized crops."""

    size: int = 224
    """Side of the views, and of the whole images in the attention pass and evaluation, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIDE:
            raise ValueError(f"size must be in 1 to {MAX_SIDE}, got {self.size}")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0.0 < low <= high < math.inf:
                raise ValueError(f"{name} must be an increasing pair of positive numbers, got {[low, high]}")
        if self.scale[1] > 1.0:
            raise ValueError(f"scale must end at 1 or below, got {list(self.scale)}")
