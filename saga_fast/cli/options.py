"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.configs import find_config
from saga_fast.errors import SagaError
from saga_fast.loaders import ENGINES, LoaderOptions, Place, Source, engines_for, open_source
from saga_fast.loaders.config import DataConfig
from saga_fast.loaders.image_folder import EXTENSIONS
from saga_fast.loaders.true_boxes import true_boxes_file
from saga_fast.runtime.address import Location, is_address, public_address
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.files import check_writable, is_stream

RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "loggers.json",
    "*.pt",
    "att/*",
    "eval/*.json",
    "events.out.tfevents.*",
    "bad_images.txt",
    "nonfinite.txt",
)
"""The files of a run folder that ``train`` writes and ``report`` reads."""


def user_path(text: str) -> Path:
    """A path of the command line; ``~`` is the home folder, also where the shell leaves it: ``--out=~/x``.

    Raises:
        ArgumentTypeError: an address.
    """
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"{public_address(text)} is an address, and a path of this machine is expected"
        )
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser fails without a home folder


def user_text(text: str) -> str:
    """:func:`user_path` as a string."""
    return str(user_path(text))


def user_location(text: str) -> Location:
    """Images of the command line: an address as it is, anything else as :func:`user_path`."""
    return text if is_address(text) else user_path(text)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``; :func:`chosen_config` reads it, with ``--set`` and ``--engine``."""
    text = "YAML file, or the name of a shipped config: see saga-fast configs"
    parser.add_argument("--config", type=user_path, required=True, metavar="C", help=text)


def chosen_config(options: argparse.Namespace) -> TrainConfig:
    """The config of ``--config``, with the values of ``--set`` and ``--engine``.

    Raises:
        SagaError: see :func:`find_config` and :func:`load_config`.
    """
    config = load_config(find_config(options.config), options.overrides)
    if not options.engine:
        return config
    return replace(config, data=replace(config.data, engine=options.engine))


def add_overrides(parser: argparse.ArgumentParser, *, text: str) -> None:
    """Add ``--set key=value ...``: ``overrides``, a list of strings. The option may be repeated."""
    parser.add_argument(
        "--set", dest="overrides", action="extend", nargs="+", default=[], metavar="key=value", help=text
    )


def add_engine(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add ``--engine``, None by default."""
    text = f"loader engine: {', '.join(ENGINES)}; default: {default}"
    parser.add_argument("--engine", metavar="E", help=text)


def add_loading(parser: argparse.ArgumentParser, *, batch_size: int | None = 64) -> None:
    """Add the options of :func:`chosen_source` and :func:`loader_options`.

    Args:
        parser: the command's parser.
        batch_size: the default of ``--batch-size``; None: the linear probe's protocol has it.
    """
    add_engine(parser, default="ffcv for .beton files, else folder")
    default = "the protocol's" if batch_size is None else str(batch_size)
    parser.add_argument("--batch-size", type=int, default=batch_size, metavar="B", help=f"default: {default}")
    parser.add_argument("--threads", type=int, metavar="N", help="decoding threads; default: all cores")
    add_cache(parser)
    add_places(parser)
    add_device(parser)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache``."""
    text = "folder for copies of remote files and of parquet files as Arrow; default: remote tar files are not copied"
    parser.add_argument("--cache", type=user_path, metavar="DIR", help=text)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--decode`` and ``--crop``."""
    for option, done in (("decode", "decoded"), ("crop", "cropped")):
        text = f"where images are {done}; auto (default): on the GPU if the engine supports it"
        parser.add_argument(f"--{option}", choices=get_args(Place), default="auto", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")


def chosen_engine(options: argparse.Namespace, path: Location) -> str:
    """``--engine``, or the default engine of a folder or .beton file."""
    engine: str | None = options.engine
    return engine or engines_for(path)[0]


def chosen_source(options: argparse.Namespace, data: DataConfig) -> tuple[str, Source]:
    """Engine and images of ``--data``; without ``--data`` those of the checkpoint's config.

    Raises:
        SagaError: the checkpoint's images are at an address: nothing is fetched on behalf of a file that may be a
            stranger's.
    """
    if options.data:
        engine = chosen_engine(options, options.data)
        return engine, open_source(engine, options.data, cache=options.cache)
    if is_address(data.train):
        address = public_address(data.train)
        raise SagaError(f"the checkpoint's images are at {address}: if you trust it, name it with --data")
    engine = options.engine or data.engine
    return engine, open_source(engine, data.train, classes=data.classes, cache=options.cache)


def loader_options(options: argparse.Namespace) -> LoaderOptions:
    """The loader options from the arguments of :func:`add_loading`."""
    return LoaderOptions(
        batch_size=options.batch_size,
        threads=options.threads,
        decode=options.decode,
        crop=options.crop,
        device=choose_device(options.device),
    )


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Check that the numbers of these options are positive.

    Raises:
        SagaError: a number that is not positive.
    """
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not number > 0:
                raise SagaError(f"--{name.replace('_', '-')} must be positive, got {number}")


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Location | None]) -> None:
    """Check the files that a command writes, before its work.

    Args:
        outputs: the files; None: an option that was not given.
        inputs: the files and folders that the command reads: checkpoints, tables, lists, images, run folders.

    Raises:
        SagaError: an output that is a folder, an input, a file in an input folder, or another output.
        OSError: an output's folder cannot be made or written.
    """
    files, given_files = [path for path in outputs if path is not None], list(inputs)
    for number, path in enumerate(files):
        if path.is_dir():
            raise SagaError(f"cannot write to {path}, it is a folder: name a file")
        if is_stream(path):
            continue
        for given in given_files:
            if given is not None and not is_address(given) and _holds(Path(given), path):
                raise SagaError(f"cannot write to {path}, the command reads it: name another file")
        if any(_is_same(path, other) for other in files[:number]):
            raise SagaError(f"cannot write two outputs to {path}: name another file")
    for path in files:
        check_writable(path)


def is_run_file(path: Path, folder: Path) -> bool:
    """Whether ``path`` is, or would be, one of RUN_FILES of a folder."""
    inside = _below(path, folder)
    return inside is not None and any(inside.match(pattern) for pattern in RUN_FILES) and len(inside.parts) <= 2


def _holds(given: Path, path: Path) -> bool:
    """Whether writing ``path`` changes an input."""
    if not given.is_dir():
        sidecars = [true_boxes_file(given), given.with_name(f"{given.name}.json")] if given.suffix == ".beton" else []
        return any(_is_same(path, file) for file in (given, *sidecars))
    if (given / "metrics.jsonl").exists() or (given / "last.pt").exists():
        return is_run_file(path, given)
    inside = _below(path, given)
    if inside is None or not path.is_file():
        return False
    in_class = len(inside.parts) > 1 or not any(entry.is_dir() for entry in given.iterdir())
    return inside == Path("boxes.json") or (in_class and path.suffix.lower() in (*EXTENSIONS, ".tar", ".xml"))


def _is_same(first: Path, second: Path) -> bool:
    """Whether two paths are one file, which need not exist."""
    if first.exists() and second.exists():
        return first.samefile(second)
    return os.path.realpath(first) == os.path.realpath(second)


def _below(path: Path, folder: Path) -> Path | None:
    """``path`` relative to a folder, None outside of it."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return real.relative_to(root) if real.is_relative_to(root) else None
