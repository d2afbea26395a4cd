"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from saga_fast.device import choose_device
from saga_fast.errors import SagaError
from saga_fast.loaders import ENGINES, Place, Source, engines_for, open_source
from saga_fast.train.config import DataConfig


def add_overrides(parser: argparse.ArgumentParser, *, text: str) -> None:
    """``--set key=value ...``, as often as one likes: ``overrides``, a list of strings."""
    parser.add_argument(
        "--set", dest="overrides", action="extend", nargs="+", default=[], metavar="key=value", help=text
    )


def add_engine(parser: argparse.ArgumentParser, *, default: str) -> None:
    """``--engine``; None when it is not given."""
    text = f"how images are read: {', '.join(ENGINES)}; default: {default}"
    parser.add_argument("--engine", metavar="E", help=text)


def add_loading(parser: argparse.ArgumentParser, *, batch_size: int | None = 64) -> None:
    """How images are read and where the model runs; see :func:`chosen_source` and :func:`loading`."""
    add_engine(parser, default="the one for the form of the data")
    usual = "the protocol's" if batch_size is None else str(batch_size)
    parser.add_argument("--batch-size", type=int, default=batch_size, metavar="B", help=f"default: {usual}")
    parser.add_argument("--threads", type=int, metavar="N", help="decoding threads; default: all cores")
    add_places(parser)
    add_device(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """``--decode`` and ``--crop``."""
    for what, text in (("decode", "decoded"), ("crop", "cropped")):
        text = f"where images are {text}; default: as the engine likes it"
        parser.add_argument(f"--{what}", choices=get_args(Place), default="auto", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")


def chosen_engine(options: argparse.Namespace, path: Path | str) -> str:
    """``--engine``, or the usual one for data of this form."""
    engine: str | None = options.engine
    return engine or engines_for(path)[0]


def chosen_source(options: argparse.Namespace, data: DataConfig) -> tuple[str, Source]:
    """The engine and the images of ``--data``, or without it those of a checkpoint's own ``data``."""
    if options.data:
        engine = chosen_engine(options, options.data)
        return engine, open_source(engine, options.data)
    engine = options.engine or data.engine
    return engine, open_source(engine, data.train, classes=data.classes)


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_loading` gave, as arguments of :func:`open_loader`."""
    names = ("batch_size", "threads", "decode", "crop")
    return {name: getattr(options, name) for name in names} | {"device": choose_device(options.device)}


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Refuse numbers, one or several per option, that are not positive.

    Raises:
        SagaError: with the option and the number.
    """
    for name in names:
        value = getattr(options, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not number > 0:
                raise SagaError(f"--{name.replace('_', '-')} must be positive, got {number}")
