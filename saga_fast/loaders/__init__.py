"""Images in, batches out. No file here imports a model."""

from __future__ import annotations

import os
from pathlib import Path

from saga_fast.errors import SagaError
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.box_table import BoxTable
from saga_fast.loaders.folder import FolderLoader
from saga_fast.loaders.image_folder import ImageFolder
from saga_fast.loaders.loader import Loader
from saga_fast.loaders.plan import CropPlan, Plan, WholePlan

ENGINES = {"folder": FolderLoader}

__all__ = [
    "ENGINES",
    "BadImages",
    "Batch",
    "BoxTable",
    "CropPlan",
    "ImageFolder",
    "Loader",
    "Plan",
    "WholePlan",
    "open_loader",
]


def open_loader(
    engine: str,
    source: ImageFolder | Path | str,
    plan: Plan,
    *,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = 0,
    bad: BadImages | None = None,
    threads: int | None = None,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Loader:
    """A loader that yields :class:`Batch` (views, index, label), the same ones whatever the engine.

    Args:
        engine: a name in ``ENGINES``: ``"folder"``.
        source: a folder of images, or an :class:`ImageFolder` that lists one.
        plan: the windows: :class:`CropPlan` to train, :class:`WholePlan` for the attention pass and evaluation. A plan
            with a box table is checked against the data set.
        batch_size: images per batch.
        shuffle: a new order every epoch, by (seed, epoch); else ascending.
        drop_last: leave out a last batch that is not full.
        seed: keys the order.
        bad: list of undecodable images to share between loaders. An image that cannot be decoded is added to it and
            left out of later epochs; its place is taken by another image when ``shuffle`` is set (training) and left
            out of the batch when it is not (attention pass, evaluation), so no index ever shifts.
        threads: decoding threads; default: the processor cores this process may use.
        prefetch: batches decoded ahead of the one in use, which bounds memory.
        pin_memory: page-locked batches, for asynchronous copies to a GPU.

    Returns:
        An iterable with ``set_epoch(epoch)``, ``set_plan(plan)``, ``len()``; iteration may be stopped at any point.

    Raises:
        SagaError: no such engine or folder, a table of another data set, batch_size, threads or prefetch out of
            range, or fewer images than one batch when ``drop_last`` is set.
    """
    if engine not in ENGINES:
        raise SagaError(f"no such engine: {engine!r}, have {', '.join(sorted(ENGINES))}")
    folder = source if isinstance(source, ImageFolder) else ImageFolder(source)
    threads = _usable_cores() if threads is None else threads
    for name, value, least in (("batch_size", batch_size, 1), ("threads", threads, 1), ("prefetch", prefetch, 0)):
        if value < least:
            raise SagaError(f"{name} must be at least {least}, got {value}")
    if drop_last and batch_size > len(folder):
        raise SagaError(f"batch_size {batch_size} is more than the {len(folder)} images in {folder.root}")
    return ENGINES[engine](
        folder,
        plan,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        bad=BadImages(folder) if bad is None else bad,
        threads=threads,
        prefetch=prefetch,
        pin_memory=pin_memory,
    )


def _usable_cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container or under taskset, where Linux tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
