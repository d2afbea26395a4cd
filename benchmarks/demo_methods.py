"""All seven methods on the demo's images, plainly and then with SAGA: does the loss fall, and is kNN above chance?

Each run is a shipped config, ``configs/demo*.yaml``, as it is. Rows are written as the runs end, and a run that is
there is not repeated. Run it as ``PYTHONPATH=. python benchmarks/demo_methods.py --out FILE --runs DIR``.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path
from typing import Any

from saga_fast.methods import METHODS
from saga_fast.profile.figures import Row, line, write
from saga_fast.train.config import load_config
from saga_fast.train.cycle import train
from saga_fast.train.metrics import read_metrics

CLASSES = 12
"""Of the demo's images; guessing finds one in so many."""
K = 20


def config_of(method: str) -> Path:
    """The demo's config for a method; SimCLR's is the demo's own."""
    return Path(str(files("saga_fast.configs"))) / ("demo.yaml" if method == "simclr" else f"demo_{method}.yaml")


def row_of(method: str, run: Path, phases: tuple[int, int]) -> Row:
    """What a finished run says: the ratio is kNN over chance, after the last epoch, on the backbone's features."""
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
    facts: dict[str, Any] = {
        "loss": losses,
        "plain_loss_falls": losses[plain - 1] < losses[0],
        "saga_loss_falls": losses[total - 1] < losses[plain],
        "knn": knn,
        "found_fraction": [row["found_fraction"] for row in renewals],
        "box_iou": [row["iou"] for row in renewals],
        "train_images_per_second": sum(row["images_per_second"] for row in epochs) / len(epochs),
    }
    figure = {"name": f"{method}, kNN (k {K}) after {total} epochs", "accuracy": knn[total], "limit": 1 / CLASSES}
    return figure | {"against": "chance", "ratio": knn[total] * CLASSES, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs and the images")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="key=value", help="to try it out")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for method in arguments.methods:
        run = arguments.runs / method
        data = [f"data.{split}={arguments.runs / 'data' / split}" for split in ("train", "val")]
        config = load_config(config_of(method), [f"out={run}", *data, *arguments.overrides])
        train(config, resume=True, progress=True)
        rows.append(row_of(method, run, (config.plain.epochs, config.saga.epochs)))
        write(arguments.out, rows)
        print(line(rows[-1]))


if __name__ == "__main__":
    main()
