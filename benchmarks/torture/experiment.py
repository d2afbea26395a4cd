"""The tiny experiment that is killed: 41 images, one of them cut short, 1 plain and 4 SAGA epochs of MoCo v2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.torture.processes import Ended, command, warm_up


@dataclass(frozen=True)
class Undisturbed:
    """The experiment's config, its finished run, and the seconds that it took."""

    config: Path
    run: Path
    seconds: float


def make_images(root: Path, *, per_class: int = 20, size: tuple[int, int] = (24, 20)) -> Path:
    """Smooth random JPEGs of two classes, and one JPEG that is cut short."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(root / name / f"{number:04d}.jpg")
    good = (root / "dog" / "0000.jpg").read_bytes()
    (root / "dog" / "zzzz.jpg").write_bytes(good[: len(good) // 3])
    return root


def undisturbed(folder: Path) -> Undisturbed:
    """Make the experiment in ``folder`` and run it without a fault."""
    config, run = _make_config(folder), folder / "reference"
    warm_up(folder / "log.txt")
    ended = train(config, run, folder / "log.txt")
    assert ended.code == 0, ended
    return Undisturbed(config, run, ended.seconds)


def train(
    config: Path,
    run: Path,
    log: Path,
    *,
    kill_after: float | None = None,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """``saga-fast train --resume``; for the options see :func:`benchmarks.torture.processes.command`."""
    words = ["train", "--config", str(config), "--out", str(run), "--resume"]
    return command(words, log, kill_after=kill_after, prepare=prepare)


def _make_config(folder: Path) -> Path:
    data = make_images(folder / "images")
    values = {
        "out": "not-set",
        "method": {"name": "mocov2", "temperature": 0.2, "projection_dim": 12, "queue_size": 20, "momentum": 0.9},
        "encoder": {"name": "resnet18", "stem": "small", "args": {"layers": [1] * 4, "channels": [8, 8, 8, 16]}},
        "data": {"train": str(data), "val": str(data), "threads": 2, "max_bad_fraction": 0.1},
        "crop": {"size": 16, "scale": [0.2, 1.0]},
        "batch_size": 8,
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5.0e-4},
        "plain": {"epochs": 1, "lr": 0.03},
        "saga": {"epochs": 4, "lr": 0.02, "schedule": "cosine"},
        "attention": {"period": 2},
        "evaluate": {"every": 2, "k": [5]},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
