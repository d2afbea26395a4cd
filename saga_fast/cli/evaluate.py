"""``saga-fast eval``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.cli.options import add_loading, chosen_engine, loading
from saga_fast.device import choose_device
from saga_fast.distributed import is_main
from saga_fast.errors import SagaError
from saga_fast.evaluate.knn import align_labels, extract_features, knn_accuracy
from saga_fast.files import write_text
from saga_fast.loaders import Source, WholePlan, open_loader, open_source


def add_parser(subparsers: Any) -> None:
    """Add the command and its protocols."""
    parser = subparsers.add_parser("eval", help="evaluate a checkpoint", description="Evaluate a checkpoint.")
    protocols = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    knn = protocols.add_parser(
        "knn",
        help="k-nearest-neighbour top-1",
        description="Weighted kNN top-1 on L2-normalised backbone and projector features (votes exp(s / temperature))."
        " SRC with train/ and val/ in it: val images among train images. Any other SRC: each image among all others.",
    )
    knn.add_argument("--ckpt", type=Path, required=True, metavar="CKPT", help="a saga-fast checkpoint")
    knn.add_argument("--data", type=Path, required=True, metavar="SRC", help="folder of labelled images, CLASS/*.jpg")
    knn.add_argument("--val", type=Path, metavar="DIR", help="query images, when SRC is the folder to look among")
    knn.add_argument("--k", type=int, nargs="+", default=[20, 200], metavar="K", help="neighbours; default: 20 200")
    knn.add_argument("--temperature", type=float, default=0.07, metavar="T", help="default: %(default)s")
    add_loading(knn)
    knn.add_argument("--json", type=Path, metavar="F", help="write the rows to this file")
    knn.set_defaults(run=run_knn, distributed=True)


def run_knn(options: argparse.Namespace) -> None:
    """Print one line per layer and k."""
    if min(options.k) < 1 or options.temperature <= 0.0:
        raise SagaError(f"--k and --temperature must be positive, got {options.k} and {options.temperature}")
    train, val = options.data, options.val
    if val is None and (options.data / "train").is_dir() and (options.data / "val").is_dir():
        train, val = options.data / "train", options.data / "val"
    engine = chosen_engine(options, train)
    config = checkpoint_config(read_checkpoint(options.ckpt), options.ckpt)
    model = load_model(options.ckpt).to(choose_device(options.device))

    def features(source: Source) -> Any:
        loader = open_loader(
            engine,
            source,
            WholePlan(size=config.crop.size),
            **loading(options),
        )
        return extract_features(
            model, loader, precision=config.precision, channels_last=config.channels_last, progress=True
        )

    bank_source = open_source(engine, train)
    bank, bank_labels = features(bank_source)
    queries, labels = bank, bank_labels
    if val is not None:
        query_source = open_source(engine, val)
        queries, labels = features(query_source)
        labels = align_labels(labels, query_source, bank_source)
    if not is_main():
        return
    rows = []
    for layer in bank:
        accuracies = knn_accuracy(
            bank[layer],
            bank_labels,
            queries[layer],
            labels,
            ks=options.k,
            temperature=options.temperature,
            leave_one_out=val is None,
        )
        for k, top1 in accuracies.items():
            rows.append({"protocol": "knn", "layer": layer, "k": k, "temperature": options.temperature, "top1": top1})
            print(f"kNN {layer:9s} k {k:3d}: {100 * top1:.1f} %")
    if options.json:
        write_text(
            options.json, json.dumps({"checkpoint": str(options.ckpt), "data": str(train), "rows": rows}, indent=1)
        )
