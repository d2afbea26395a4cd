"""The recipe ``saga+`` on pictures that were not made for it: ``python -m benchmarks.study.claims``.

Sets: the outside sets (benchmarks.study.outside), and the demo's images at the same size. The recipe was chosen on
seed 0 of cluttered fashion and SimCLR, the screening; the finals have other seeds, methods and sets. As in
benchmarks.study, arms start from one plain checkpoint, and a run that has a row is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from benchmarks.scaffold import benchmark_parser, read_rows, record
from benchmarks.study.arms import PAPER, Arm, Run, Scale
from benchmarks.study.outside import OutsideConfig, make_outside_data
from benchmarks.study.runs import Study
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.checkpoint import load_model
from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.evaluate.knn import knn_accuracy
from saga_fast.evaluate.linear import ProbeLoaders, linear_probe
from saga_fast.evaluate.protocols import PROTOCOLS
from saga_fast.loaders import BoxTable, CropPlan, LoaderOptions, Plan, WholePlan
from saga_fast.loaders.config import DemoDataConfig
from saga_fast.loaders.fixed_plans import BoxPlan
from saga_fast.profile.figures import Row

SAGA_PLUS = replace(PAPER, score="background", region="largest", delta=0.6, input_size=72, views="paste", share=0.7)
"""The recipe."""


ARMS: dict[str, Arm] = {
    "finetune": Arm(title="fine-tuning"),
    "saga": Arm(title="`saga`: att, pseudo_label, .7", attention=PAPER),
    "saga+": Arm(title="`saga+`: paste, background, largest region, 72 px, .6", attention=SAGA_PLUS),
    "true": Arm(title="true boxes, paste", attention=SAGA_PLUS, given="true"),
    "shuffled": Arm(title="control: `saga+`'s boxes shuffled, paste", attention=SAGA_PLUS, given="shuffled"),
    "whole": Arm(title="control: whole images, paste", attention=SAGA_PLUS, given="whole"),
    "mixed": Arm(title="`saga+`'s boxes, mixed", attention=replace(SAGA_PLUS, views="mixed")),
    "att": Arm(title="`saga+`'s boxes, att", attention=replace(SAGA_PLUS, views="att")),
    "true-mixed": Arm(title="true boxes, mixed", attention=replace(SAGA_PLUS, views="mixed"), given="true"),
    "true-att": Arm(title="true boxes, att", attention=replace(SAGA_PLUS, views="att"), given="true"),
    "imagenet": Arm(
        title="an ImageNet classifier's boxes: paste, pseudo_label, largest region, 224 px, .5",
        attention=replace(SAGA_PLUS, score="pseudo_label", delta=0.5, input_size=224),
        given="imagenet",
    ),
    "finetune-longer": Arm(title="fine-tuning, 12 epochs more", more_epochs=12),
    "saga+longer": Arm(title="`saga+`, 12 epochs more", attention=SAGA_PLUS, more_epochs=12),
    "all": Arm(title="`saga+` with a box around all regions", attention=replace(SAGA_PLUS, region="all")),
}
"""Name -> arm."""

OUTSIDE = {
    "fashion": OutsideConfig(kind="fashion", num_train=3000, num_val=2000, object_side=(0.4, 0.7)),
    "fashion-plate": OutsideConfig(kind="fashion", num_train=3000, num_val=2000, object_side=(0.4, 0.7), plate=True),
    "stamps": OutsideConfig(kind="stamps", num_train=3000, num_val=2000, object_side=(0.45, 0.75)),
}
CLAIM_SCALE = Scale(num_train=3000, num_val=2000, plain_epochs=10, saga_epochs=12, period=4)
CLAIM_TINY = Scale(num_train=40, num_val=40, side=48, size=32, plain_epochs=1, saga_epochs=1, period=1, k=3)

FINALS = ("finetune", "saga+", "true", "saga")
MECHANISM = ("shuffled", "whole", "mixed", "true-mixed", "all", "att", "true-att")
STAGES = ("screening", "finals", "methods", "mechanism", "budget", "supervised")


def stages() -> Iterator[Run]:
    """All runs, the most informative first."""

    def runs(stage: str, data: str, method: str, seed: int, arms: Sequence[str]) -> Iterator[Run]:
        yield from (Run(stage=stage, data=data, method=method, seed=seed, arm=arm) for arm in arms)

    for seed in (1, 2, 3):
        for method in ("simclr", "mocov2"):
            for data in ("fashion", "stamps"):
                yield from runs("finals", data, method, seed, FINALS[: 4 if seed == 1 else 3])
        yield from runs("finals", "middle", "simclr", seed, FINALS[: 4 if seed == 1 else 3])
        if seed > 1:  # after seed 1, which lost on stamps
            for data in ("stamps", "fashion"):
                yield from runs("methods", data, "invspread", seed, FINALS[:2])
        if seed == 1:
            yield from runs("screening", "fashion", "simclr", 0, ("finetune", "saga+", "true", *MECHANISM))
            for data in ("fashion", "stamps"):
                for method in ("invspread", "moco"):
                    yield from runs("methods", data, method, 1, FINALS[:2])
            for data in ("fashion", "stamps"):
                for method in ("simclr", "mocov2"):
                    yield from runs("budget", data, method, 1, ("finetune-longer", "saga+longer"))
                yield from runs("supervised", data, "simclr", 1, ("imagenet",))
            yield from runs("mechanism", "fashion-plate", "simclr", 1, ("finetune", "saga+", "true-mixed"))
            yield from runs("mechanism", "stamps", "invspread", 1, ("true", "mixed", "whole"))  # where saga+ loses
            for data in ("small", "large", "middle+distractor"):
                yield from runs("mechanism", data, "simclr", 1, FINALS[:2])


class ClaimStudy(Study):
    """The study's folder, with outside sets; the unpacked packages are in ``packages/``."""

    arms: ClassVar[Mapping[str, Arm]] = ARMS

    def generated(self, data: str) -> DemoDataConfig | None:
        """See :meth:`Study.generated`."""
        return None if data in OUTSIDE else self.scale.data(data)

    def images(self, data: str) -> Path:
        """See :meth:`Study.images`."""
        if data not in OUTSIDE:
            return super().images(data)
        folder, scale = self.folder / data / "data", self.scale
        config = replace(OUTSIDE[data], num_train=scale.num_train, num_val=scale.num_val, side=scale.side)
        make_outside_data(folder, config, self.folder / "packages")
        return folder

    def row(self, run: Run) -> Row:
        """See :meth:`Study.row`; also the linear probe, and kNN of the images' boxes and of both."""
        row, start = super().row(run), time.perf_counter()
        config = self.config(run, run.arm)
        ckpt = Path(config.out) / "last.pt"
        frozen = FrozenModel(model=load_model(ckpt), channels_last=config.channels_last)
        whole = WholePlan(size=config.crop.size)
        row["probe"] = self.probe(run, config, frozen)
        if run.arm in FINALS[:2]:
            boxes = {split: self.boxes(run, split, config, frozen) for split in ("train", "val")}
            for name, first in (("att", None), ("both", whole)):
                plans = {split: BoxPlan(size=whole.size, table=boxes[split], first=first) for split in boxes}
                row[f"knn_{name}"] = self.knn(run, frozen, plans)
        shares = self.images(run.data) / "train" / "shares.json"
        if shares.exists():
            row["object_share"] = float(np.mean(list(json.loads(shares.read_text()).values())))
        return row | {"evaluation_seconds": time.perf_counter() - start}

    def boxes(self, run: Run, split: str, config: TrainConfig, frozen: FrozenModel) -> BoxTable:
        """The model's boxes by the recipe's attention pass, for arms with and without it."""
        options: AttentionPass = SAGA_PLUS.attention_pass(
            size=config.crop.size, precision=config.precision, channels_last=config.channels_last
        )
        return build_box_table(frozen.model, self.open(run.data, split, WholePlan(size=options.size)), options)

    def knn(self, run: Run, frozen: FrozenModel, plans: Mapping[str, Plan]) -> float:
        """Top-1 of kNN on the backbone's features, with a plan per split."""
        bank, labels = extract_features(frozen, self.open(run.data, "train", plans["train"]))
        queries, truth = extract_features(frozen, self.open(run.data, "val", plans["val"]))
        k = self.scale.k
        return knn_accuracy(bank["backbone"], labels, queries["backbone"], truth, ks=[k])[k]

    def probe(self, run: Run, config: TrainConfig, frozen: FrozenModel) -> float:
        """Top-1 of lightly's linear probe on cached features of whole images."""
        whole, protocol = WholePlan(size=config.crop.size), replace(PROTOCOLS["lightly"], centre=None)
        crops = CropPlan(size=config.crop.size, seed=run.seed, num_views=1)
        options = LoaderOptions(batch_size=protocol.batch_size, shuffle=True, threads=self.threads)
        loaders = ProbeLoaders(
            train=self.open(run.data, "train", crops, options),
            val=self.open(run.data, "val", whole),
            cached=self.open(run.data, "train", whole),
        )
        return linear_probe(frozen, loaders, protocol, seed=run.seed, every=1000)[-1].top1


def selected(options: argparse.Namespace) -> Iterator[Run]:
    """The runs of the command line."""
    for run in stages():
        chosen = {"stages": run.stage, "data": run.data, "methods": run.method, "seeds": run.seed}
        if all(getattr(options, key) is None or value in getattr(options, key) for key, value in chosen.items()):
            yield run


def new_rows(options: argparse.Namespace, study: ClaimStudy) -> Iterator[Row]:
    """The rows of the selected runs that have none."""
    done = {row["name"] for row in read_rows(options.out)}
    for run in selected(options):
        if run.name not in done:
            yield study.row(run)


def main(words: Sequence[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, out="JSON file for the rows; those in it are kept")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the packages, the images and the runs")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="only these")
    parser.add_argument("--data", nargs="+", metavar="SET", help="only these")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these")
    parser.add_argument("--tiny", action="store_true", help="seconds: shows that the study runs")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    study = ClaimStudy(options.runs, CLAIM_TINY if options.tiny else CLAIM_SCALE)
    try:
        record(options.out, new_rows(options, study), kept=read_rows(options.out))
    except SagaError as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


if __name__ == "__main__":
    main()
