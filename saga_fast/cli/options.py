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
    """Add ``--set key=value ...``, which may be repeated: ``overrides``, a list of strings."""
    parser.add_argument(
        "--set", dest="overrides", action="extend", nargs="+", default=[], metavar="key=value", help=text
    )


def add_engine(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add ``--engine``; None if it is not given."""
    text = f"loader engine: {', '.join(ENGINES)}; default: {default}"
    parser.add_argument("--engine", metavar="E", help=text)


def add_loading(parser: argparse.ArgumentParser, *, batch_size: int | None = 64) -> None:
    """Add how images are read and where the model runs; see :func:`chosen_source` and :func:`loader_options`."""
    add_engine(parser, default="ffcv for .beton files, else folder")
    usual = "the protocol's" if batch_size is None else str(batch_size)
    parser.add_argument("--batch-size", type=int, default=batch_size, metavar="B", help=f"default: {usual}")
    parser.add_argument("--threads", type=int, metavar="N", help="decoding threads; default: all cores")
    add_places(parser)
    add_device(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--decode`` and ``--crop``."""
    for what, text in (("decode", "decoded"), ("crop", "cropped")):
        text = f"where images are {text}; auto (default): on the GPU if the engine and the device can"
        parser.add_argument(f"--{what}", choices=get_args(Place), default="auto", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")


def chosen_engine(options: argparse.Namespace, path: Path | str) -> str:
    """``--engine``, or the default engine for data of this form."""
    engine: str | None = options.engine
    return engine or engines_for(path)[0]


def chosen_source(options: argparse.Namespace, data: DataConfig) -> tuple[str, Source]:
    """The engine and the images of ``--data``, or those of the checkpoint's ``data`` if it is not given."""
    if options.data:
        engine = chosen_engine(options, options.data)
        return engine, open_source(engine, options.data)
    engine = options.engine or data.engine
    return engine, open_source(engine, data.train, classes=data.classes)


def loader_options(options: argparse.Namespace) -> LoaderOptions:
    """The options of :func:`add_loading`."""
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
        SagaError: with the option and the number.
    """
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not number > 0:
                raise SagaError(f"--{name.replace('_', '-')} must be positive, got {number}")
