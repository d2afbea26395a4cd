"""``saga-fast eval boxes``."""

from __future__ import annotations

import argparse
from typing import Any

from saga_fast.cli.options import add_cache, add_engine, check_outputs, chosen_engine, user_location, user_path
from saga_fast.cli.subject import add_json, write_rows
from saga_fast.evaluate.boxes import box_quality, chance_agreement, drift, unhelpful
from saga_fast.loaders import BoxTable, open_source
from saga_fast.loaders.true_boxes import read_true_boxes, true_boxes_file
from saga_fast.runtime.terminal import say


def add_parser(protocols: Any) -> None:
    """Add the command."""
    parser = protocols.add_parser(
        "boxes",
        help="quality of attention boxes, compared with true boxes",
        description="Mean IoU with the true boxes, CorLoc@0.5 and area of one or more box tables of a data set, and the"
        " drift from each table to the next (1 - mean IoU). Images without a true box are left out.",
    )
    parser.add_argument("--table", type=user_path, nargs="+", required=True, metavar="T", help="tables, oldest first")
    parser.add_argument("--data", type=user_location, required=True, metavar="SRC", help="the images of the tables")
    parser.add_argument(
        "--truth",
        type=user_path,
        metavar="B",
        help="true boxes: boxes.json, a CSV (path,x_min,y_min,w,h in [0, 1]), or ImageNet's folder of XML annotations;"
        " default: SRC/boxes.json",
    )
    parser.add_argument(
        "--classes", type=user_path, metavar="TXT", help="file with one class folder per line: use only these"
    )
    add_engine(parser, default="ffcv for .beton files, else folder")
    add_cache(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print one line per table."""
    check_outputs([options.json], [*options.table, options.data, options.truth, options.classes])
    engine = chosen_engine(options, options.data)
    source = open_source(engine, options.data, classes=options.classes, cache=options.cache)
    tables = [BoxTable.open(path) for path in options.table]
    for table in tables:
        table.check(source.fingerprint, len(source))
    truths = read_true_boxes(options.truth or true_boxes_file(source.root), source.paths)
    rows, lines = [], []
    for number, (path, table) in enumerate(zip(options.table, tables, strict=True)):
        epoch = table.metadata.get("epoch")
        table_drift = drift(tables[number - 1], table) if number else None
        row = {"protocol": "boxes", "name": path.stem, "epoch": int(epoch) if epoch else None}
        row |= {**box_quality(table, source.paths, truths), "drift": table_drift}
        rows.append(row)
        drift_text = "" if table_drift is None else f", drift {table_drift:.3f}"
        corloc, corloc_whole = f"{100 * row['corloc']:.1f} %", f"{100 * row['corloc_whole']:.1f} %"
        lines.append(
            f"{path.stem}: IoU {row['iou']:.3f} (whole image {row['iou_whole']:.3f}), CorLoc {corloc} ({corloc_whole}),"
            f" area {row['area']:.3f} (true {row['true_area']:.3f}){drift_text}"
        )
    agreement = 1.0 - drift(*tables[-2:]) if len(tables) > 1 else None
    write_rows(options.json, rows, data=str(source.root))
    for line in lines:
        say(line)
    if reason := unhelpful(tables[-1].mean_area, agreement, chance_agreement(tables[-1])):
        say(f"the last table's boxes will hardly help: {reason}")
    say(f"over {rows[0]['images']} of {len(source)} images with a true box")
