"""Options that several commands share."""

from __future__ import annotations

import argparse

from saga_fast.loaders import ENGINES


def add_overrides(parser: argparse.ArgumentParser, *, text: str) -> None:
    """``--set key=value ...``, as often as one likes: ``overrides``, a list of strings."""
    parser.add_argument(
        "--set", dest="overrides", action="extend", nargs="+", default=[], metavar="key=value", help=text
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How images are read and where the model runs: ``engine``, ``batch_size``, ``threads``, ``device``."""
    parser.add_argument("--engine", default="folder", metavar="E", help=f"one of {', '.join(ENGINES)}")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="decoding threads; default: all cores")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
