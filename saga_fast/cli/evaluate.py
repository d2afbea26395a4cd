"""``saga-fast eval``."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from saga_fast.cli import eval_boxes, eval_linear, eval_pairs
from saga_fast.cli.subject import Subject, add_subject, open_subject, write_rows
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import LAYERS, Layer, extract_features
from saga_fast.evaluate.knn import align_labels, check_neighbours, knn_accuracy
from saga_fast.loaders import Source, WholePlan
from saga_fast.runtime.distributed import is_main
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command and its protocols."""
    text = "Evaluate a checkpoint. knn, linear and pairs also run under torchrun, one process per GPU."
    parser = subparsers.add_parser("eval", help="evaluate a checkpoint", description=text)
    protocols = parser.add_subparsers(dest="evaluation", required=True, metavar="PROTOCOL")
    knn = protocols.add_parser(
        "knn",
        help="k-nearest-neighbour top-1",
        description="Weighted kNN top-1 on L2-normalised backbone and projector features; a neighbour's vote is"
        " exp(similarity / temperature). If SRC contains train/ and val/, val images are classified by train images."
        " Otherwise each image is classified by the remaining images.",
    )
    add_subject(knn)
    knn.add_argument(
        "--k", type=int, nargs="+", default=[20, 200], metavar="K", help="numbers of neighbours; default: 20 200"
    )
    knn.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[0.07],
        metavar="T",
        help="temperatures of the votes; default: 0.07",
    )
    knn.add_argument("--layer", nargs="+", choices=LAYERS, default=list(LAYERS), help="default: both")
    knn.set_defaults(run=run_knn, distributed=True)
    eval_linear.add_parser(protocols)
    eval_pairs.add_parser(protocols)
    eval_boxes.add_parser(protocols)


def run_knn(options: argparse.Namespace) -> None:
    """Print one line per layer, temperature and k."""
    if min(options.k) < 1 or min(options.temperature) <= 0.0:
        raise SagaError(f"--k {options.k} and --temperature {options.temperature} must be positive")
    subject = open_subject(options)
    queries = subject.val
    check_neighbours(max(options.k), len(subject.train), leave_one_out=queries is None)
    if queries is not None:  # unknown classes are refused before the passes over the images
        align_labels(torch.from_numpy(queries.labels), queries, subject.train)
    bank, bank_labels = _features(subject, subject.train)
    if queries is None:
        features, labels = bank, bank_labels
    else:
        features, labels = _features(subject, queries)
        labels = align_labels(labels, queries, subject.train)
    rows, lines = [], []
    for layer in [layer for layer in LAYERS if layer in options.layer]:
        tensors = [x.to(subject.frozen.device) for x in (bank[layer], bank_labels, features[layer], labels)]
        for temperature in options.temperature:
            accuracies = knn_accuracy(
                *tensors,
                ks=options.k,
                temperature=temperature,
                leave_one_out=queries is None,
            )
            for k, top1 in accuracies.items():
                rows.append(
                    {
                        "protocol": "knn",
                        "layer": layer,
                        "k": k,
                        "temperature": temperature,
                        "views": options.views,
                        "epoch": subject.checkpoint.epoch,
                        "top1": top1,
                        "images": len(labels),
                    }
                )
                at = f" temperature {temperature:g}" if len(options.temperature) > 1 else ""
                lines.append(f"kNN {layer:9s} k {k:3d}{at}: {100 * top1:.1f} %")
    if not is_main():
        return
    write_rows(options.json, rows, checkpoint=str(options.ckpt), data=str(subject.train.root))
    for line in lines:
        say(line)


def _features(subject: Subject, source: Source) -> tuple[dict[Layer, torch.Tensor], torch.Tensor]:
    plan = subject.plan(source, WholePlan(size=subject.config.crop.size))
    return extract_features(subject.frozen, subject.loader(source, plan), progress=True)
