"""One run of the study: trained from its plain checkpoint, evaluated on whole images, and made into a row."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks.demo_methods import config_of
from benchmarks.study.arms import ARMS, Arm, Run, Scale
from benchmarks.study.classifier import top1, train_classifier
from benchmarks.study.imagenet_classifier import imagenet_classifier
from saga_fast.attention import AttentionConfig, build_box_table
from saga_fast.checkpoint import load_model
from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.demo.data import demo_boxes, make_demo_data
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.evaluate.knn import knn_accuracy
from saga_fast.loaders import BoxTable, CropPlan, Loader, LoaderOptions, Plan, WholePlan, open_loader, open_source
from saga_fast.loaders.boxes import WHOLE
from saga_fast.loaders.config import DemoDataConfig
from saga_fast.profile.figures import Row
from saga_fast.runtime.machine import commit
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train.cycle import train

RENEWAL_COLUMNS = ("epoch", "iou", "corloc", "box_area", "found_fraction", "agreement", "chance_agreement", "seconds")


class Study:
    """The study's folder: images in ``data/``, and a folder per run."""

    arms: ClassVar[Mapping[str, Arm]] = ARMS

    def __init__(self, folder: Path, scale: Scale, threads: int = 1) -> None:
        self.folder, self.scale, self.threads = folder, scale, threads
        self._plain_accuracies: dict[Path, dict[str, float]] = {}

    def row(self, run: Run) -> Row:
        """Make the run, and its plain checkpoint if that is missing.

        Raises:
            SagaError: the arm is retired.
        """
        arm = self.arms[run.arm]
        if arm.retired:
            raise SagaError(
                f"arm {run.arm} needs an option that the package no longer has: its rows ran at commit {arm.retired}"
            )
        start = time.perf_counter()
        plain = self.plain(run)
        config = self.config(run, run.arm)
        config = replace(config, saga=replace(config.saga, epochs=config.saga.epochs + arm.more_epochs))
        config = replace(config, attention=self._attention(run, arm, config, plain))
        ckpt = train(config, resume=True, ckpt=plain)
        if plain not in self._plain_accuracies:
            self._plain_accuracies[plain] = self.accuracies(run, config, plain)
        before, after = self._plain_accuracies[plain], self.accuracies(run, config, ckpt)
        rows = read_metrics(Path(config.out))
        renewals = [row for row in rows if row["kind"] == "renewal"]
        key = f"backbone, k {self.scale.k}"
        row: Row = {
            "name": run.name,
            "accuracy": after[key],
            "limit": before[key],
            "against": "the plain checkpoint it starts from",
            "ratio": after[key] / before[key],
        }
        row |= {field: getattr(run, field) for field in ("stage", "data", "method", "seed", "arm")}
        row |= {
            "knn": after,
            "knn_plain": before,
            "epochs": [config.plain.epochs, config.saga.epochs],
            "renewals": [{column: renewal[column] for column in RENEWAL_COLUMNS} for renewal in renewals],
        }
        row |= {"classifier_top1": self.classifier_top1(run)} if arm.given == "classifier" else {}
        return row | {
            "train_seconds": sum(row["seconds"] for row in rows if row["kind"] == "epoch"),
            "wall_seconds": time.perf_counter() - start,
            "commit": commit(),
        }

    def plain(self, run: Run) -> Path:
        """The plain checkpoint of the run's data, method and seed; the first call trains it."""
        config = self.config(run, "plain")
        return train(replace(config, saga=replace(config.saga, epochs=0)), resume=True)

    def classifier(self, run: Run) -> Path:
        """A classifier with the plain checkpoint's encoder and number of epochs; the first call trains it."""
        config = self.config(run, "classifier")
        path = Path(config.out) / "last.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            plan = CropPlan(
                size=config.crop.size, seed=run.seed, num_views=1, scale=config.crop.scale, ratio=config.crop.ratio
            )
            options = LoaderOptions(
                batch_size=config.batch_size, shuffle=True, drop_last=True, seed=run.seed, threads=self.threads
            )
            train_classifier(config, self.open(run.data, "train", plan, options), path)
        return path

    def classifier_top1(self, run: Run) -> float:
        """The classifier's accuracy on whole validation images."""
        config = self.config(run, "classifier")
        whole = self.open(run.data, "val", WholePlan(size=config.crop.size))
        return top1(self.classifier(run), whole, channels_last=config.channels_last)

    def config(self, run: Run, name: str) -> TrainConfig:
        """The demo's config of the method at the study's size, for fine-tuning; the run's images are made."""
        scale, data = self.scale, self.images(run.data)
        overrides = [
            f"out={self.folder / run.data / f'{run.method}-{run.seed}' / name}",
            f"data.train={data / 'train'}",
            f"data.val={data / 'val'}",
            f"data.threads={self.threads}",
            f"seed={run.seed}",
            f"crop.size={scale.size}",
            f"plain.epochs={scale.plain_epochs}",
            f"saga.epochs={scale.saga_epochs}",
            "saga.lr=0.001",  # fine-tuning learnt faster than with the demo's 0.0005
            # timm's 64 channels at full resolution take half of the time of so small a network.
            "encoder.stem_channels=16",
            "attention=null",
            "evaluate=null",
            "device=cpu",
            *(["batch_size=8"] if scale.num_train < 64 else []),
        ]
        config = load_config(config_of(run.method), overrides)
        return replace(config, data=replace(config.data, generate=self.generated(run.data)))

    def generated(self, data: str) -> DemoDataConfig | None:
        """The config of demo images; None for others."""
        return self.scale.data(data)

    def images(self, data: str) -> Path:
        """The folder of a set's ``train`` and ``val``; the first call makes its images."""
        folder = self.folder / data / "data"
        make_demo_data(folder, self.scale.data(data))
        return folder

    def _attention(self, run: Run, arm: Arm, config: TrainConfig, plain: Path) -> AttentionConfig | None:
        """The arm's attention, with the boxes that it gives."""
        if arm.attention is None:
            return None
        attention = replace(arm.attention, period=arm.period or self.scale.period)
        if arm.given is None:
            return attention
        if arm.given == "classifier":
            return replace(attention, provider="supervised", provider_ckpt=str(self.classifier(run)))
        if arm.given == "imagenet":
            ckpt = imagenet_classifier(self.folder / "imagenet.pt")
            return replace(attention, provider="supervised", provider_ckpt=str(ckpt))
        path = Path(config.out).parent / f"{run.arm}.safetensors"
        if not path.exists():
            self._given_table(run, arm, replace(config, attention=attention), plain).save(path)
        return replace(attention, provider="table", provider_table=str(path))

    def _given_table(self, run: Run, arm: Arm, config: TrainConfig, plain: Path) -> BoxTable:
        """The table of an arm whose boxes are given."""
        options = config.attention_pass
        loader = self.open(run.data, "train", WholePlan(size=options.size))
        count = len(loader.source)
        boxes = demo_boxes(loader.source.root, loader.source.paths)
        if arm.given == "shuffled":
            table = build_box_table(load_model(plain), loader, options)
            boxes = table.boxes[np.random.default_rng(run.seed).permutation(count)]
        elif arm.given == "whole":
            boxes = np.tile(WHOLE, (count, 1))
        elif arm.given == "centre":
            # As large as the true boxes are on average.
            side = np.sqrt((boxes[:, 2] * boxes[:, 3]).mean())
            boxes = np.tile(np.array([(1 - side) / 2, (1 - side) / 2, side, side], np.float32), (count, 1))
        found, metadata = np.ones(count, np.bool_), {"dataset": loader.source.fingerprint}
        return replace(BoxTable.whole(count), boxes=boxes, found=found, metadata=metadata)

    def open(self, data: str, split: str, plan: Plan, options: LoaderOptions | None = None) -> Loader:
        """A loader of a split's images, in order unless the options shuffle them."""
        source = open_source("folder", self.images(data) / split)
        return open_loader("folder", source, plan, options or LoaderOptions(threads=self.threads))

    def accuracies(self, run: Run, config: TrainConfig, ckpt: Path) -> dict[str, float]:
        """kNN of the validation images among the training images, all of them whole: "layer, k" -> top-1."""
        whole = WholePlan(size=config.crop.size)
        frozen = FrozenModel(model=load_model(ckpt), channels_last=config.channels_last)
        bank, bank_labels = extract_features(frozen, self.open(run.data, "train", whole))
        queries, labels = extract_features(frozen, self.open(run.data, "val", whole))
        k = self.scale.k
        return {
            f"{layer}, k {k}": knn_accuracy(bank[layer], bank_labels, queries[layer], labels, ks=[k])[k]
            for layer in bank
        }
