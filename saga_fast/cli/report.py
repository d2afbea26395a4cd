"""``saga-fast report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saga_fast.cli.options import check_outputs, user_path
from saga_fast.report import write_report
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="compare training runs in one HTML file",
        description="One self-contained HTML page: accuracy by epoch, the paper's tables with rows for these runs,"
        " boxes of each renewal, throughput, configs, and results of `saga-fast eval ... --json RUN/eval/NAME.json`."
        " Runs whose configs differ in the seed only are one group; the baseline of the verdict is fine-tuning"
        " (attention: null) of the same method.",
    )
    parser.add_argument("runs", type=user_path, nargs="+", metavar="RUN", help="run folders, shown in this order")
    parser.add_argument(
        "--out", type=user_path, default=Path("report.html"), metavar="HTML", help="default: %(default)s"
    )
    parser.add_argument("--title", default="saga-fast", metavar="T", help="heading; default: %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the page and print its path."""
    check_outputs([options.out], options.runs)
    write_report(options.runs, options.out, title=options.title)
    say(f"report: {options.out}")
