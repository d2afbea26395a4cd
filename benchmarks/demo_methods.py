"""All seven methods on the demo's images, plainly and then with SAGA: does the loss fall, and is kNN above chance?

Each run is a shipped config, ``configs/demo*.yaml``, as it is. A run that is finished is not repeated.

Run it as ``PYTHONPATH=. python benchmarks/demo_methods.py --out FILE --runs DIR``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from benchmarks.scaffold import benchmark_parser, record
from saga_fast.config_file import load_config
from saga_fast.demo.data import make_demo_data
from saga_fast.methods import METHODS
from saga_fast.profile.figures import Row
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train.cycle import train

CLASSES = 12
"""Of the demo's images."""
K = 20


def config_of(method: str) -> Path:
    """The demo's config of a method; SimCLR's is the demo's own."""
    return Path(str(files("saga_fast.configs"))) / ("demo.yaml" if method == "simclr" else f"demo_{method}.yaml")


DEMO_METHODS = [method for method in METHODS if config_of(method).exists()]
"""The methods with a config for the demo."""


def row_of(method: str, run: Path, phases: tuple[int, int]) -> Row:
    """The figures of a finished run; the ratio is kNN over chance, after the last epoch, on the backbone's features."""
    rows = read_metrics(run)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    losses = [row["loss"] for row in epochs]
    knn: dict[int, float] = {
        row["epoch"]: row["top1"]
        for row in rows
        if row["kind"] == "knn" and row["layer"] == "backbone" and row["k"] == K
    }
    renewals = [row for row in rows if row["kind"] == "renewal"]
    plain, total = phases[0], sum(phases)
    return {
        "name": f"{method}, kNN (k {K}) after {total} epochs",
        "accuracy": knn[total],
        "limit": 1 / CLASSES,
        "against": "chance",
        "ratio": knn[total] * CLASSES,
        "loss": losses,
        "plain_loss_falls": losses[plain - 1] < losses[0],
        "saga_loss_falls": losses[total - 1] < losses[plain],
        "knn": knn,
        "found_fraction": [row["found_fraction"] for row in renewals],
        "box_iou": [row["iou"] for row in renewals],
        "train_images_per_second": sum(row["images_per_second"] for row in epochs) / len(epochs),
    }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """A row per method."""
    for method in options.methods:
        run = options.runs / method
        data = [f"data.{split}={options.runs / 'data' / split}" for split in ("train", "val")]
        config = load_config(config_of(method), [f"out={run}", *data, *options.overrides])
        if config.data.generate:
            make_demo_data(options.runs / "data", config.data.generate)
        train(config, resume=True, progress=True)
        yield row_of(method, run, (config.plain.epochs, config.saga.epochs))


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs and the images")
    parser.add_argument("--methods", nargs="+", choices=DEMO_METHODS, default=DEMO_METHODS)
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="key=value", help="for trials")
    options = parser.parse_args()
    record(options.out, rows(options))


if __name__ == "__main__":
    main()
