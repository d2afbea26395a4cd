"""``saga-fast show-att``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saga_fast.cli.options import add_engine, check_positive, chosen_engine
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, open_source
from saga_fast.report.sheet import SORTS, draw_sheet, evenly_spaced, sheet_order, sheet_page
from saga_fast.runtime.files import check_writable, replacing, write_text


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "show-att",
        help="a contact sheet of attention boxes",
        description="Images with their attention boxes: yellow, and blue those of --other. The ones shown are spread"
        " evenly over the order of --sort, from its first to its last.",
    )
    parser.add_argument("table", type=Path, metavar="T.safetensors", help="a box table: RUN/att/*, or of build-att")
    parser.add_argument("--data", type=Path, required=True, metavar="SRC", help="the images of the table")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="a .png, or an .html page with captions")
    parser.add_argument(
        "--sort",
        choices=SORTS,
        default="index",
        help="area: smallest first; score: strongest first; drift: moved most from --other first; default: %(default)s",
    )
    parser.add_argument("--other", type=Path, metavar="T2", help="another table of the same images")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="images shown; default: %(default)s")
    parser.add_argument("--first", action="store_true", help="the first N of the order instead of N spread over it")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="of a .png; default: %(default)s")
    parser.add_argument("--classes", type=Path, metavar="TXT", help="take only the class folders that its lines name")
    add_engine(parser, default="ffcv for .beton files, else folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the sheet and say where it is."""
    check_positive(options, "count", "columns")
    if options.out.suffix not in (".png", ".html"):
        raise SagaError(f"--out must end in .png or .html, got {options.out}")
    check_writable(options.out)
    source = open_source(chosen_engine(options, options.data), options.data, classes=options.classes)
    table = BoxTable.open(options.table)
    other = BoxTable.open(options.other) if options.other else None
    for each in (table, other):
        if each is not None:
            each.check(source.fingerprint, len(source))
    order, words = sheet_order(table, options.sort, other)
    chosen = order[: options.count] if options.first else evenly_spaced(order, options.count)
    rows = chosen.tolist()
    if options.out.suffix == ".html":
        title = f"{options.table.name}: {len(rows)} of {len(table)} images by {options.sort}"
        write_text(options.out, sheet_page(source, table, rows, words, title=title, other=other))
    else:
        picture = draw_sheet(source, table, rows, columns=min(options.columns, len(rows)), other=other)
        with replacing(options.out) as temporary:
            picture.save(temporary, "PNG", optimize=True)
    print(f"{options.out}: {len(rows)} of {len(table)} images by {options.sort}")
