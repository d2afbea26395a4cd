"""The engines by name, and opening a loader with one of them."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from saga_fast.errors import SagaError
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.decode import MAX_PIXELS
from saga_fast.loaders.loader import Loader, LoaderOptions, Place
from saga_fast.loaders.plan import Plan
from saga_fast.loaders.shards import Shards, is_shards
from saga_fast.loaders.source import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine: its loader's class, as ``module:name`` because importing one takes seconds and may be impossible."""

    loader: str
    decode: tuple[Place, ...]
    """Where it can decode; the first is ``auto`` on the CPU."""
    crop: tuple[Place, ...]
    gpu_crop_on_cpu: bool = False
    """Whether the way of ``crop="gpu"`` can be gone, and tried out, without a GPU: the CPU then does the GPU's part."""
    source: str = "saga_fast.loaders.image_folder:ImageFolder"
    """What it reads, as a class; see ``open_source``."""
    suffix: str = ""
    """That of the files it reads; none for folders."""
    packages: tuple[str, ...] = ()
    """What has to be importable."""
    install: str = ""


ENGINES = {
    "folder": Engine(loader="saga_fast.loaders.folder:FolderLoader", decode=("cpu", "gpu"), crop=("cpu", "gpu")),
    "ffcv": Engine(
        loader="saga_fast.loaders.ffcv.engine:FfcvLoader",
        decode=("cpu",),
        crop=("cpu", "gpu"),
        gpu_crop_on_cpu=True,
        source="saga_fast.loaders.ffcv.beton:Beton",
        suffix=".beton",
        packages=("ffcv",),
        install="apt install libopencv-dev libturbojpeg0-dev pkg-config g++, then pip install 'saga-fast[ffcv]'",
    ),
    "dali": Engine(
        loader="saga_fast.loaders.dali:DaliLoader",
        decode=("gpu", "cpu"),
        crop=("gpu", "cpu"),
        packages=("nvidia.dali",),
        install="pip install 'saga-fast[dali]' (Linux only)",
    ),
}


def open_source(engine: str, path: Path | str, *, classes: Path | str | None = None) -> Source:
    """The data set that an engine reads.

    Args:
        engine: a name in ``ENGINES``.
        path: a folder of images; a tar file of images, or a folder that holds such files and nothing else; for
            ``ffcv`` a file that ``saga-fast pack`` wrote.
        classes: see :class:`ImageFolder`.

    Raises:
        SagaError: no such engine, another engine's file, or what :class:`ImageFolder`, :class:`Shards` or ``Beton``
            refuses.
    """
    found = require_engine(engine)
    _check_form(engine, found, Path(path))
    if is_shards(Path(path)) and not found.suffix:
        if classes:
            raise SagaError(f"a class list ({classes}) goes with a folder of images, {path} is tar files")
        return Shards(path)
    return cast(Source, _load(found.source)(path, classes=classes))


def open_loader(
    engine: str,
    source: Source | Path | str,
    plan: Plan,
    *,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    seed: int = 0,
    bad: BadImages | None = None,
    threads: int | None = None,
    prefetch: int = 2,
    device: torch.device | str = "cpu",
    decode: Place = "auto",
    crop: Place = "auto",
    max_pixels: int = MAX_PIXELS,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """A loader that yields :class:`Batch` (views, index, label), the same ones whatever the engine.

    Args:
        engine: a name in ``ENGINES``: ``"folder"``, ``"ffcv"``, ``"dali"``.
        source: a folder or tar files of images, for ``"ffcv"`` a .beton file, or what :func:`open_source` gave.
        plan: the windows: :class:`CropPlan` to train, :class:`WholePlan` for the attention pass and evaluation. A plan
            with a box table is checked against the data set.
        batch_size: images per batch, all processes' parts together.
        shuffle: a new order every epoch, by (seed, epoch); else ascending.
        drop_last: leave out a last batch that is not full.
        seed: keys the order.
        bad: list of undecodable images to share between loaders. An image that cannot be decoded is added to it and
            left out of later epochs; its place is taken by another image when ``shuffle`` is set (training) and left
            out of the batch when it is not (attention pass, evaluation), so no index ever shifts.
        threads: decoding threads; default: the processor cores this process may use.
        prefetch: batches decoded ahead of the one in use, which bounds memory.
        device: where the batches are used. For a GPU, batches on the CPU are page-locked, so that copying them does
            not block; what is cropped on the GPU stays there.
        decode, crop: where images are decoded and cropped: ``cpu``, ``gpu``, or ``auto``, which is the engine's choice
            for ``device``.
        max_pixels: larger images are bad ones: no memory is taken for what a file of some bytes says it holds.
        rank, world_size: of ``world_size`` processes this is number ``rank``: it yields the ``rank``-th of as many
            equal parts of each batch. An epoch's batches are the same for any number of processes, as long as their
            lists ``bad`` are when an iteration begins. What stands in for an image that is only then found to be bad
            keeps clear of the part's other images, not of those of other parts.

    Returns:
        An iterable with ``set_epoch(epoch)``, ``set_plan(plan)``, ``len()``; iteration may be stopped at any point.

    Raises:
        SagaError: no such engine or folder, an engine that is not installed or cannot work where it is told to, a table
            of another data set, batch_size, threads, prefetch or max_pixels out of range, a batch_size that
            ``world_size`` does not divide, or fewer images than one batch when ``drop_last`` is set.
    """
    found = require_engine(engine)
    source = open_source(engine, source) if isinstance(source, Path | str) else source
    _check_form(engine, found, source.root)
    threads = usable_cores() if threads is None else threads
    for name, value, least in (("batch_size", batch_size, 1), ("threads", threads, 1), ("prefetch", prefetch, 0)):
        if value < least:
            raise SagaError(f"{name} must be at least {least}, got {value}")
    if batch_size % world_size:
        raise SagaError(f"batch_size {batch_size} cannot be split evenly among {world_size} processes")
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise SagaError(f"max_pixels must be in 1 to {MAX_PIXELS}, got {max_pixels}")
    if drop_last and batch_size > len(source):
        raise SagaError(f"batch_size {batch_size} is more than the {len(source)} images in {source.root}")
    device = torch.device(device)
    decode = _place(engine, "decode", decode, found.decode, device)
    crop = "gpu" if (decode, crop) == ("gpu", "auto") else crop
    crop = _place(engine, "crop", crop, found.crop, device, without_gpu=found.gpu_crop_on_cpu)
    if (decode, crop) == ("gpu", "cpu"):
        raise SagaError("images decoded on the GPU are cropped there: crop must be auto or gpu, got 'cpu'")
    options = LoaderOptions(
        batch_size=batch_size // world_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        bad=BadImages(source) if bad is None else bad,
        threads=threads,
        prefetch=prefetch,
        device=device,
        decode=decode,
        crop=crop,
        max_pixels=max_pixels,
        rank=rank,
        world_size=world_size,
    )
    return cast(Loader, _load(found.loader)(source, plan, options))


def engines_for(path: Path | str) -> list[str]:
    """The engines that read data of this form, whether or not they are installed; the first is the usual one."""
    suffixes = {engine.suffix for engine in ENGINES.values() if engine.suffix}
    suffix = "" if Path(path).is_dir() else Path(path).suffix
    return [name for name, engine in ENGINES.items() if engine.suffix == (suffix if suffix in suffixes else "")]


def usable_cores() -> int:
    """Cores that this process may use: fewer than the machine's in a container or under taskset, where Linux tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_engine(name: str) -> Engine:
    """The engine, whose packages can be imported.

    Raises:
        SagaError: no such engine, or one that is not installed.
    """
    if name not in ENGINES:
        raise SagaError(f"no such engine: {name!r}, have {', '.join(ENGINES)}")
    engine = ENGINES[name]
    for package in engine.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SagaError(f"engine {name} needs {package} ({error}): {engine.install}") from error
    return engine


def _load(name: str) -> Callable[..., object]:
    """What ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return cast(Callable[..., object], getattr(importlib.import_module(module), attribute))


def _check_form(engine: str, found: Engine, path: Path) -> None:
    """
    Raises:
        SagaError: ``path`` is what another engine reads.
    """
    others = {other.suffix: name for name, other in ENGINES.items() if other.suffix}
    if path.suffix in others and not found.suffix and not path.is_dir():
        raise SagaError(f"engine {engine} reads folders of images, {path} is for --engine {others[path.suffix]}")


def _place(
    engine: str,
    what: str,
    wanted: Place,
    offered: tuple[Place, ...],
    device: torch.device,
    *,
    without_gpu: bool = False,
) -> Place:
    """``wanted``, or the engine's choice for ``device`` in place of ``auto``: its first offer that works there."""
    if wanted not in ("auto", "cpu", "gpu"):
        raise SagaError(f"{what} must be auto, cpu or gpu, got {wanted!r}")
    if wanted == "auto":
        return next(place for place in offered if place == "cpu" or device.type == "cuda")
    if wanted not in offered:
        raise SagaError(f"engine {engine} cannot {what} on the {wanted.upper()}, only {' or '.join(offered)}")
    if wanted == "gpu" and device.type != "cuda" and without_gpu:
        log.warning("%s: gpu without a GPU, on device %s: the CPU does its part, which is slower", what, device)
    elif wanted == "gpu" and device.type != "cuda":
        raise SagaError(f"{what}: gpu needs a GPU, and this is device {device}")
    return wanted
