"""``saga-fast show-att``."""

from __future__ import annotations

import argparse
from typing import Any

from saga_fast.cli.options import (
    add_cache,
    add_engine,
    check_outputs,
    check_positive,
    chosen_engine,
    user_location,
    user_path,
)
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, open_source
from saga_fast.report.sheet import SORTS, draw_sheet, evenly_spaced, sheet_order, sheet_page
from saga_fast.runtime.files import replacing, write_text
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "show-att",
        help="a contact sheet of attention boxes",
        description="Images with their attention boxes in yellow, and those of --other in blue. The images are evenly"
        " spaced in the order of --sort, from the first to the last.",
    )
    parser.add_argument("table", type=user_path, metavar="T.safetensors", help="box table, from RUN/att/ or build-att")
    parser.add_argument("--data", type=user_location, required=True, metavar="SRC", help="the images of the table")
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="F", help="a .png file, or an .html page with captions"
    )
    parser.add_argument(
        "--sort",
        choices=SORTS,
        default="index",
        help="area: smallest first; score: highest first; drift: largest 1 - IoU with --other first;"
        " default: %(default)s",
    )
    parser.add_argument("--other", type=user_path, metavar="T2", help="a table of the same images, for comparison")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="number of images; default: %(default)s")
    parser.add_argument("--first", action="store_true", help="the first N images instead of N evenly spaced ones")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="columns of a .png; default: %(default)s")
    parser.add_argument(
        "--classes", type=user_path, metavar="TXT", help="file with one class folder per line: use only these"
    )
    add_engine(parser, default="ffcv for .beton files, else folder")
    add_cache(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the sheet and print its path."""
    check_positive(options, "count", "columns")
    if options.out.suffix not in (".png", ".html"):
        raise SagaError(f"--out {options.out} must end in .png or .html")
    check_outputs([options.out], [options.table, options.other, options.data, options.classes])
    engine = chosen_engine(options, options.data)
    source = open_source(engine, options.data, classes=options.classes, cache=options.cache)
    table = BoxTable.open(options.table)
    reference = BoxTable.open(options.other) if options.other else None
    for checked in (table, reference):
        if checked is not None:
            checked.check(source.fingerprint, len(source))
    order, captions = sheet_order(table, options.sort, reference)
    chosen = order[: options.count] if options.first else evenly_spaced(order, options.count)
    rows = chosen.tolist()
    if options.out.suffix == ".html":
        title = f"{options.table.name}: {len(rows)} of {len(table)} images by {options.sort}"
        write_text(options.out, sheet_page(source, table, rows, captions, title=title, reference=reference))
    else:
        picture = draw_sheet(source, table, rows, columns=min(options.columns, len(rows)), reference=reference)
        with replacing(options.out) as temporary:
            picture.save(temporary, "PNG", optimize=True)
    say(f"{options.out}: {len(rows)} of {len(table)} images by {options.sort}")
