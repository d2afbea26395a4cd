"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from saga_fast.errors import SagaError
from saga_fast.loaders import ENGINES, LoaderOptions, Place, Source, engines_for, open_source
from saga_fast.loaders.config import DataConfig
from saga_fast.runtime.device import choose_device


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
    add_places(parser)
    add_device(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--decode`` and ``--crop``."""
    for option, done in (("decode", "decoded"), ("crop", "cropped")):
        text = f"where images are {done}; auto (default): on the GPU if the engine supports it"
        parser.add_argument(f"--{option}", choices=get_args(Place), default="auto", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")


def chosen_engine(options: argparse.Namespace, path: Path | str) -> str:
    """``--engine``, or the default engine of a folder or .beton file."""
    engine: str | None = options.engine
    return engine or engines_for(path)[0]


def chosen_source(options: argparse.Namespace, data: DataConfig) -> tuple[str, Source]:
    """Engine and images of ``--data``; without ``--data`` those of the checkpoint's config."""
    if options.data:
        engine = chosen_engine(options, options.data)
        return engine, open_source(engine, options.data)
    engine = options.engine or data.engine
    return engine, open_source(engine, data.train, classes=data.classes)


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
