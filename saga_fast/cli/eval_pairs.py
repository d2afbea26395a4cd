"""``saga-fast eval pairs``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saga_fast.attention.config import AttentionConfig
from saga_fast.checkpoint import open_checkpoint
from saga_fast.cli.options import (
    add_loading,
    check_outputs,
    check_positive,
    chosen_source,
    loader_options,
    user_location,
    user_path,
)
from saga_fast.cli.subject import add_json, make_table, write_rows
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import LAYERS, FrozenModel
from saga_fast.evaluate.pairs import histogram, pair_similarities
from saga_fast.loaders import BoxTable, CropPlan, WholePlan, open_loader
from saga_fast.models.modes import place_model
from saga_fast.report.histograms import draw_png
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.distributed import check_same, is_main
from saga_fast.runtime.terminal import say


def add_parser(protocols: Any) -> None:
    """Add the command."""
    parser = protocols.add_parser(
        "pairs",
        help="similarity of positive pairs, plain and attention crops",
        description="Histograms and means of the cosine similarity of positive pairs (the paper's Fig. 4): two views of"
        " each image, augmented as in training, cropped from the whole image and from its attention box.",
    )
    parser.add_argument(
        "--ckpt", type=user_path, nargs="+", required=True, metavar="CKPT", help="one or more checkpoints"
    )
    parser.add_argument(
        "--data", type=user_location, metavar="SRC", help="images; default: each checkpoint's training images"
    )
    parser.add_argument(
        "--table",
        type=user_path,
        nargs="+",
        metavar="T",
        help="box tables, one per checkpoint; default: computed with each checkpoint",
    )
    parser.add_argument("--images", type=int, metavar="N", help="number of images, drawn at random; default: all")
    parser.add_argument("--layer", choices=LAYERS, default="projector", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    add_loading(parser)
    add_json(parser)
    parser.add_argument("--png", type=user_path, metavar="F", help="write the histograms to this PNG file")
    parser.set_defaults(run=run, distributed=True)


def run(options: argparse.Namespace) -> None:
    """Print one line per checkpoint and kind of crop, and write rows and histograms."""
    check_positive(options, "images", "batch_size")
    if options.table and len(options.table) != len(options.ckpt):
        raise SagaError(
            f"{len(options.table)} for {len(options.ckpt)} checkpoints: --table needs one file per checkpoint"
        )
    check_outputs([options.json, options.png], [*options.ckpt, *(options.table or []), options.data])
    rows = []
    for number, (ckpt, name) in enumerate(zip(options.ckpt, _names(options.ckpt), strict=True)):
        table = options.table[number] if options.table else None
        rows += _rows(options, ckpt, name, table)
    if not is_main():
        return
    checkpoints = [str(ckpt) for ckpt in options.ckpt]
    write_rows(options.json, rows, checkpoint=checkpoints[0] if len(checkpoints) == 1 else checkpoints)
    if options.png:
        draw_png(options.png, rows)
    for row in rows:
        say(f"{row['name']} epoch {row['epoch']}, {row['views']:9s}: mean {row['mean']:.3f}, std {row['std']:.3f}")


def _names(ckpts: Sequence[Path]) -> list[str]:
    """``FOLDER/FILE`` of each checkpoint without its ending, with more parent folders if names are equal."""
    full = [ckpt.resolve().with_suffix("").parts for ckpt in ckpts]
    depth = 2
    while len({parts[-depth:] for parts in full}) < len(set(full)):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in full]


def _rows(options: argparse.Namespace, ckpt: Path, name: str, table_file: Path | None) -> list[dict[str, Any]]:
    """The rows of a checkpoint's plain and attention crops."""
    checkpoint = open_checkpoint(ckpt)
    config = checkpoint.config
    device = choose_device(options.device)
    model = place_model(checkpoint.model(), device, channels_last=config.channels_last)
    engine, source = chosen_source(options, config.data)
    check_same({"the checkpoint": checkpoint.sha256, "the data set": source.fingerprint})
    if table_file is None:
        whole = open_loader(engine, source, WholePlan(size=config.attention_pass.size), loader_options(options))
        table = make_table(model, whole, config)
    else:
        table = BoxTable.open(table_file)
    attention = config.attention or AttentionConfig()
    plain = CropPlan(size=config.crop.size, seed=options.seed, scale=config.crop.scale, ratio=config.crop.ratio)
    attention_crops = replace(plain, table=table, crop=attention.crop, min_side=attention.min_side)
    frozen = FrozenModel(model=model, precision=config.precision, channels_last=config.channels_last)
    rows = []
    for views, plan in (("plain", plain), ("attention", attention_crops)):
        loading = replace(loader_options(options), shuffle=True, seed=options.seed)
        loader = open_loader(engine, source, plan, loading)
        similarities = pair_similarities(
            frozen,
            loader,
            config.recipes(2),
            images=options.images,
            layer=options.layer,
            seed=options.seed,
            progress=True,
        )
        row = {"protocol": "pairs", "name": name, "epoch": checkpoint.epoch, "views": views, "layer": options.layer}
        rows.append({**row, **histogram(similarities)})
    return rows
