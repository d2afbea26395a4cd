"""The engines by name, and the functions that open a data set and a loader with one of them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

import torch

from saga_fast.errors import SagaError
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.config import MAX_THREADS
from saga_fast.loaders.decode import MAX_PIXELS
from saga_fast.loaders.hugging_face import HuggingFaceImages, is_hugging_face
from saga_fast.loaders.loader import Loader, LoaderOptions, Place, ResolvedOptions
from saga_fast.loaders.packages import require_packages
from saga_fast.loaders.plan import Plan
from saga_fast.loaders.remote.open import open_remote
from saga_fast.loaders.shards import Shards, is_shards
from saga_fast.loaders.source import Source
from saga_fast.runtime.address import Location, as_location, is_address, public_address
from saga_fast.runtime.threads import usable_cores

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine. Its classes are given as ``module:name``: importing them takes seconds and may be impossible."""

    loader: str
    decode: tuple[Place, ...]
    """Where it can decode, the preferred place first."""
    crop: tuple[Place, ...]
    """Where it can crop, likewise."""
    gpu_decoder: str = ""
    """A function of the device that raises SagaError if decoding there does not work on this machine."""
    gpu_crop_on_cpu: bool = False
    """Whether ``crop="gpu"`` also runs without a GPU, for tests: the CPU then does the GPU's part."""
    source: str = "saga_fast.loaders.image_folder:ImageFolder"
    """The class of the data sets that it reads."""
    suffix: str = ""
    """Suffix of the files that it reads; "" for folders."""
    packages: tuple[str, ...] = ()
    """Packages that must be importable."""
    install: str = ""
    """How to install them."""


ENGINES = {
    "folder": Engine(
        loader="saga_fast.loaders.folder.engine:FolderLoader",
        decode=("gpu", "cpu"),
        crop=("gpu", "cpu"),
        gpu_decoder="saga_fast.loaders.device_images:check_nvjpeg",
    ),
    "ffcv": Engine(
        loader="saga_fast.loaders.ffcv.engine:FfcvLoader",
        decode=("cpu",),
        crop=("gpu", "cpu"),
        gpu_crop_on_cpu=True,
        source="saga_fast.loaders.ffcv.beton:Beton",
        suffix=".beton",
        packages=("ffcv",),
        install="apt install libopencv-dev libturbojpeg0-dev pkg-config g++, then pip install 'saga-fast[ffcv]'",
    ),
    "dali": Engine(
        loader="saga_fast.loaders.dali.engine:DaliLoader",
        decode=("gpu", "cpu"),
        crop=("gpu", "cpu"),
        packages=("nvidia.dali",),
        install="pip install 'saga-fast[dali]' (Linux only)",
    ),
}


def open_source(
    engine: str, path: Location, *, classes: Path | str | None = None, cache: Path | str | None = None
) -> Source:
    """The data set at a path or an address, for an engine.

    Args:
        engine: a name in ``ENGINES``.
        path: a folder of images; a tar file of images, or a folder that holds such files and nothing else; a folder of
            Hugging Face's ``save_to_disk``, a parquet file, or a folder of these; tar or parquet files at an address,
            see :func:`open_remote`; for ``ffcv`` a file that ``saga-fast pack`` wrote.
        classes: see :class:`ImageFolder`.
        cache: folder for copies of remote files, and for converted parquet files; None: see :func:`open_remote` and
            :class:`HuggingFaceImages`.

    Raises:
        SagaError: no such engine, another engine's file, or what :class:`ImageFolder`, :class:`Shards`,
            :class:`HuggingFaceImages`, :func:`open_remote` or ``Beton`` refuses.
    """
    entry, path = require_engine(engine), as_location(path)
    _check_form(engine, entry, path)
    if entry.suffix or not (is_address(path) or _is_listed(path)):
        return cast(Source, _load(entry.source)(path, classes=classes))
    if classes:
        raise SagaError(f"a class list ({classes}) goes with a folder of images, which {public_address(path)} is not")
    folder = None if cache is None else Path(cache)
    if is_address(path):
        return open_remote(path, cache=folder)
    return Shards(path) if is_shards(Path(path)) else HuggingFaceImages(path, cache=folder)


def open_loader(
    engine: str,
    source: Source | Location,
    plan: Plan,
    options: LoaderOptions = LoaderOptions(),
    *,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    bad: BadImages | None = None,
) -> Loader:
    """A loader that yields :class:`Batch` (views, index, label), equal ones for any engine.

    Args:
        engine: a name in ``ENGINES``: ``"folder"``, ``"ffcv"``, ``"dali"``.
        source: a folder or tar files of images, for ``"ffcv"`` a .beton file, or what :func:`open_source` returned.
        plan: the windows: :class:`CropPlan` to train, :class:`WholePlan` for the attention pass and evaluation. A plan
            with a box table is checked against the data set.
        options: see :class:`LoaderOptions`. With ``world_size`` above 1, an epoch's batches are equal for any number of
            processes, as long as their lists ``bad`` are equal when an iteration begins; the substitute of an image
            that is found to be bad in that iteration avoids the images of this process's part only.
        batch_size, shuffle: replace the options' values.
        bad: list of undecodable images to share between loaders. An image that cannot be decoded is added to it and
            left out of later epochs; with ``shuffle`` (training) another image takes its place in the batch, otherwise
            (attention pass, evaluation) the batch is smaller. No index ever shifts.

    Returns:
        An iterable with ``set_epoch(epoch)``, ``set_plan(plan)`` and ``len()``; iteration may be stopped at any point.

    Raises:
        SagaError: no such engine or folder, an engine that is not installed or cannot work in the given place, a table
            of another data set, an option out of range, a batch_size that ``world_size`` does not divide, or fewer
            images than one batch with ``drop_last``.
    """
    entry = require_engine(engine)
    source = open_source(engine, source) if isinstance(source, Path | str) else source
    _check_form(engine, entry, source.root)
    options = replace(
        options,
        batch_size=options.batch_size if batch_size is None else batch_size,
        shuffle=options.shuffle if shuffle is None else shuffle,
    )
    resolved = _resolve(engine, entry, options)
    if options.drop_last and options.batch_size > len(source):
        raise SagaError(f"batch_size {options.batch_size} is more than the {len(source)} images in {source.root}")
    loader: Callable[..., object] = _load(entry.loader)
    return cast(Loader, loader(source, plan, resolved, BadImages(source) if bad is None else bad))


def _is_listed(path: Location) -> bool:
    """Whether the files at a path hold lists of images, other than a folder of images."""
    return is_shards(Path(path)) or is_hugging_face(Path(path))


def _resolve(name: str, engine: Engine, options: LoaderOptions) -> ResolvedOptions:
    """
    Raises:
        SagaError: an option out of range, or a place where the engine cannot work.
    """
    threads = usable_cores() if options.threads is None else options.threads
    limits = {
        "batch_size": (options.batch_size, 1, 2**24),
        "threads": (threads, 1, MAX_THREADS),
        "prefetch": (options.prefetch, 0, MAX_THREADS),
    }
    for option, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise SagaError(f"{option} must be in {least} to {most}, got {value}")
    if options.batch_size % options.world_size:
        raise SagaError(f"batch_size {options.batch_size} cannot be split evenly among {options.world_size} processes")
    if not 1 <= options.max_pixels <= MAX_PIXELS:
        raise SagaError(f"max_pixels must be in 1 to {MAX_PIXELS}, got {options.max_pixels}")
    device = torch.device(options.device)
    if str(device) == "cuda" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())  # for the threads, whose current one is the first
    decode = _place(name, "decode", options.decode, engine.decode, device)
    crop: Place = "gpu" if (decode, options.crop) == ("gpu", "auto") else options.crop
    crop = _place(name, "crop", crop, engine.crop, device, without_gpu=engine.gpu_crop_on_cpu)
    if (decode, crop) == ("gpu", "cpu"):
        if options.decode == "gpu":
            raise SagaError("images decoded on the GPU are cropped there: crop must be auto or gpu, got 'cpu'")
        decode = "cpu"
    if decode == "gpu" and not _decoder_works(engine, options.decode, device):
        decode = "cpu"
    return ResolvedOptions(
        **{field.name: getattr(options, field.name) for field in fields(LoaderOptions)}
        | {"threads": threads, "device": device, "decode": decode, "crop": crop}
    )


def engines_for(path: Location) -> list[str]:
    """The names of the engines that read this data, installed or not, the default engine first."""
    suffixes = {engine.suffix for engine in ENGINES.values() if engine.suffix}
    suffix = "" if is_address(path) or Path(path).is_dir() else Path(path).suffix
    return [name for name, engine in ENGINES.items() if engine.suffix == (suffix if suffix in suffixes else "")]


def require_engine(name: str) -> Engine:
    """The engine of this name, after checking that its packages can be imported.

    Raises:
        SagaError: no such engine, or one that is not installed.
    """
    if name not in ENGINES:
        raise SagaError(f"no such engine: {name!r}, have {', '.join(ENGINES)}")
    engine = ENGINES[name]
    require_packages(f"engine {name}", engine.packages, engine.install)
    return engine


def _load(name: str) -> Callable[..., object]:
    """The object that ``module:name`` names."""
    module, _, attribute = name.partition(":")
    return cast(Callable[..., object], getattr(importlib.import_module(module), attribute))


def _check_form(name: str, engine: Engine, path: Location) -> None:
    """
    Raises:
        SagaError: ``path`` is a file of another engine.
    """
    if is_address(path):
        if engine.suffix:
            readers = " or ".join(engines_for(path))
            raise SagaError(
                f"engine {name} reads files of this machine, {public_address(path)} is for --engine {readers}"
            )
        return
    path = Path(path)
    by_suffix = {entry.suffix: key for key, entry in ENGINES.items() if entry.suffix}
    if path.suffix in by_suffix and not engine.suffix and not path.is_dir():
        raise SagaError(f"engine {name} reads folders of images, {path} is for --engine {by_suffix[path.suffix]}")


def _decoder_works(engine: Engine, wanted: Place, device: torch.device) -> bool:
    """Whether the GPU's decoder works; if ``auto`` chose it, its failure is a warning.

    Raises:
        SagaError: ``wanted`` is the GPU, and it fails.
    """
    if not engine.gpu_decoder:
        return True
    try:
        _load(engine.gpu_decoder)(device)
    except SagaError as error:
        if wanted == "gpu":
            raise
        log.warning("%s; decoding on the CPU", error)
        return False
    return True


def _place(
    engine: str,
    what: str,
    wanted: Place,
    offered: tuple[Place, ...],
    device: torch.device,
    *,
    without_gpu: bool = False,
) -> Place:
    """The place ``wanted``; for ``auto`` the engine's first one that works on ``device``."""
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
