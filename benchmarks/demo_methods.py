"""All methods on the demo's images, plainly and then with SAGA: does the loss fall, and is kNN above chance?

Each run is a shipped config, ``configs/demo*.yaml``, as it is. A run that is finished is not repeated.

With ``--arms finetune saga_plus`` and ``--seeds``, each seed has a plain run and, from its checkpoint, as many further
epochs of fine-tuning and of ``saga_plus``, the attention of demo_plus.yaml.

Run it as ``PYTHONPATH=. python benchmarks/demo_methods.py --out FILE --runs DIR``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from benchmarks.scaffold import benchmark_parser, record
from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.configs import shipped_config
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


ARMS = ("plain", "finetune", "saga_plus")


def row_of(method: str, run: Path, phases: tuple[int, int]) -> Row:
    """The figures of a finished run; the ratio is kNN over chance, after the last epoch, on the backbone's features."""
    rows = read_metrics(run)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    losses = [row["loss"] for row in epochs]
    knn = knn_of(run)
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


def knn_of(run: Path) -> dict[int, float]:
    """Epoch -> kNN on the backbone's features of whole images."""
    wanted = ("knn", "backbone", K)
    return {
        row["epoch"]: row["top1"]
        for row in read_metrics(run)
        if (row["kind"], row.get("layer"), row.get("k")) == wanted
    }


def config_for(options: argparse.Namespace, method: str, run: Path) -> TrainConfig:
    """The demo's config of a method with the command line's overrides; its images are made."""
    data = [f"data.{split}={options.runs / 'data' / split}" for split in ("train", "val")]
    config = load_config(config_of(method), [f"out={run}", *data, *options.overrides])
    if config.data.generate:
        make_demo_data(options.runs / "data", config.data.generate)
    return config


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """A row per method."""
    for method in options.methods:
        run = options.runs / method
        config = config_for(options, method, run)
        train(config, resume=True, progress=True)
        yield row_of(method, run, (config.plain.epochs, config.saga.epochs))


def arm_rows(options: argparse.Namespace) -> Iterator[Row]:
    """A row per seed, method and arm; the ratio is the last kNN over fine-tuning's, for ``plain`` over chance."""
    plus = load_config(shipped_config("demo_plus")).attention
    for seed in options.seeds:
        for method in options.methods:
            folder = options.runs / f"{method}-{seed}"
            config = replace(config_for(options, method, folder), seed=seed, attention=None)
            arms = {
                "plain": replace(config, saga=replace(config.saga, epochs=0)),
                "finetune": config,
                "saga_plus": replace(config, attention=plus),
            }
            last: dict[str, float] = {}
            for arm in [arm for arm in ARMS if arm == "plain" or arm in options.arms]:
                run = folder / arm
                start = None if arm == "plain" else folder / "plain" / "last.pt"
                train(replace(arms[arm], out=str(run)), resume=True, ckpt=start, progress=True)
                knn = knn_of(run)
                last[arm] = knn[max(knn)]
                against, limit = ("fine-tuning", last["finetune"]) if "finetune" in last else ("chance", 1 / CLASSES)
                read = read_metrics(run)
                yield {
                    "name": f"{method}, seed {seed}, {arm}",
                    "accuracy": last[arm],
                    "limit": limit,
                    "against": against,
                    "ratio": last[arm] / limit,
                    "knn": knn,
                    "corloc": [row["corloc"] for row in read if row["kind"] == "renewal"],
                    "seconds_of_training": sum(row["seconds"] for row in read if row["kind"] == "epoch"),
                }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs and the images")
    parser.add_argument("--methods", nargs="+", choices=DEMO_METHODS, default=DEMO_METHODS)
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="key=value", help="for trials")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="from a plain run per seed; default: the configs' own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="of the arms' runs")
    options = parser.parse_args()
    record(options.out, arm_rows(options) if options.arms else rows(options))


if __name__ == "__main__":
    main()
