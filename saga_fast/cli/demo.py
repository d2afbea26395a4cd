"""``saga-fast demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saga_fast.cli.options import add_engine, add_overrides, user_path
from saga_fast.demo.run import run_demo
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="SAGA end to end on generated images, with a report, in minutes on two cores",
        description="Generate a small image set with known object boxes, train without attention, then fine-tune and"
        " run SAGA from the same checkpoint, and write a report. An interrupted demo resumes.",
    )
    parser.add_argument("--out", type=user_path, default=Path("runs/demo"), metavar="DIR", help="default: %(default)s")
    add_engine(parser, default="folder")
    parser.add_argument("--tiny", action="store_true", help="a few dozen images and epochs: a smoke test")
    add_overrides(parser, text="override a value of the config demo")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the demo and print the path of the report."""
    engine = options.engine or "folder"
    say(f"report: {run_demo(options.out, engine=engine, tiny=options.tiny, overrides=options.overrides)}")
