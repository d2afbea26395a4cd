"""One run of the study: trained from its plain checkpoint, evaluated on whole images, and put into a row."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_methods import config_of
from benchmarks.study.arms import ARMS, Arm, Given, Run, Scale
from benchmarks.study.classifier import top1, train_classifier
from saga_fast.attention import build_box_table
from saga_fast.attention_config import AttentionConfig
from saga_fast.checkpoint import load_model
from saga_fast.demo_data import make_demo_data, read_true_boxes
from saga_fast.evaluate.knn import extract_features, knn_accuracy
from saga_fast.loaders import BoxTable, CropPlan, Loader, Plan, WholePlan, open_loader, open_source
from saga_fast.methods import Method
from saga_fast.profile.figures import Row, commit
from saga_fast.train.config import TrainConfig, load_config
from saga_fast.train.cycle import train
from saga_fast.train.metrics import read_metrics


class Study:
    """The study's folder: images in ``data/``, and a folder per run."""

    def __init__(self, folder: Path, scale: Scale, threads: int = 1) -> None:
        self.folder, self.scale, self.threads = folder, scale, threads
        self._before: dict[Path, dict[str, float]] = {}

    def row(self, run: Run) -> Row:
        """Make the run, and the plain checkpoint that it starts from if that is not there yet."""
        start = time.perf_counter()
        plain = self.plain(run)
        arm = ARMS[run.arm]
        config = self.config(run, run.arm)
        config = replace(config, saga=replace(config.saga, epochs=config.saga.epochs + arm.more_epochs))
        if arm.attention is not None:
            config = replace(config, attention=self._attention(run, arm, config, plain))
        supervised = config.attention is not None and config.attention.provider == "supervised"
        ckpt = train(config, resume=True, ckpt=plain)
        if plain not in self._before:
            self._before[plain] = self.accuracies(plain, config)
        accuracy, before = self.accuracies(ckpt, config), self._before[plain]
        rows = read_metrics(Path(config.out))
        key = f"backbone, k {self.scale.k}"
        return {
            "name": run.name,
            "accuracy": accuracy[key],
            "limit": before[key],
            "against": "the plain checkpoint it starts from",
            "ratio": accuracy[key] / before[key],
            **{field: getattr(run, field) for field in ("stage", "data", "method", "seed", "arm")},
            "knn": accuracy,
            "knn_plain": before,
            "epochs": [config.plain.epochs, config.saga.epochs],
            "renewals": [
                {column: row[column] for column in ("epoch", "iou", "corloc", "box_area", "found_fraction", "seconds")}
                for row in rows
                if row["kind"] == "renewal"
            ],
            **({"classifier_top1": self.classifier_top1(run)} if supervised else {}),
            "train_seconds": sum(row["seconds"] for row in rows if row["kind"] == "epoch"),
            "wall_seconds": time.perf_counter() - start,
            "commit": commit(),
        }

    def plain(self, run: Run) -> Path:
        """The plain checkpoint of the run's data, method and seed; trained when it is first asked for."""
        config = self.config(run, "plain")
        return train(replace(config, saga=replace(config.saga, epochs=0)), resume=True)

    def classifier(self, run: Run) -> Path:
        """A classifier of the plain checkpoint's encoder, trained on the labels for as many epochs; made once."""
        config = self.config(run, "classifier")
        path = Path(config.out) / "last.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            plan = CropPlan(
                size=config.crop.size, seed=run.seed, num_views=1, scale=config.crop.scale, ratio=config.crop.ratio
            )
            training = {"batch_size": config.batch_size, "shuffle": True, "drop_last": True, "seed": run.seed}
            train_classifier(config, self.open(config, "train", plan, **training), path)
        return path

    def classifier_top1(self, run: Run) -> float:
        """Its accuracy on whole validation images."""
        config = self.config(run, "classifier")
        whole = self.open(config, "val", WholePlan(size=config.crop.size))
        return top1(self.classifier(run), whole, channels_last=config.channels_last)

    def config(self, run: Run, name: str) -> TrainConfig:
        """The demo's config of the method, at the study's size: fine-tuning."""
        scale, data = self.scale, self.folder / run.data / "data"
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
        return replace(config, data=replace(config.data, generate=scale.data(run.data)))

    def _attention(self, run: Run, arm: Arm, config: TrainConfig, plain: Path) -> AttentionConfig:
        assert arm.attention is not None
        values = {"period": self.scale.period, **arm.attention}
        if values.get("provider") == "supervised":
            return AttentionConfig(**values, provider_ckpt=str(self.classifier(run)))
        if arm.given is None:
            return AttentionConfig(**values)
        path = Path(config.out).parent / f"{run.arm}.safetensors"
        if not path.exists():
            self._given_table(arm.given, AttentionConfig(**values), config, plain, run.seed).save(path)
        return AttentionConfig(**values, provider="table", provider_table=str(path))

    def _given_table(
        self, given: Given, attention: AttentionConfig, config: TrainConfig, plain: Path, seed: int
    ) -> BoxTable:
        """A table that is not the training network's: see :class:`Arm`."""
        loader = self.open(config, "train", WholePlan(size=attention.input_size or config.crop.size))
        count = len(loader.source)
        boxes = read_true_boxes(loader.source.root, loader.source.paths)
        if given == "shuffled":
            own = own_table(load_model(plain), loader, attention, config.channels_last)
            boxes = own.boxes[np.random.default_rng(seed).permutation(count)]
        elif given == "centre":
            # As large as the true boxes are on average.
            side = np.sqrt((boxes[:, 2] * boxes[:, 3]).mean())
            boxes = np.tile(np.array([(1 - side) / 2, (1 - side) / 2, side, side], np.float32), (count, 1))
        found, metadata = np.ones(count, np.bool_), {"dataset": loader.source.fingerprint}
        return replace(BoxTable.whole(count), boxes=boxes, found=found, metadata=metadata)

    def open(self, config: TrainConfig, split: str, plan: Plan, **options: Any) -> Loader:
        """The images of a split, in their order unless ``options`` of ``open_loader`` say otherwise."""
        path = config.data.train if split == "train" else config.data.val
        assert path is not None and config.data.generate is not None
        make_demo_data(Path(path).parent, config.data.generate)
        source = open_source("folder", path)
        return open_loader("folder", source, plan, **({"batch_size": 256, "threads": self.threads} | options))

    def accuracies(self, ckpt: Path, config: TrainConfig) -> dict[str, float]:
        """kNN of the validation images among the training images, all of them whole: "layer, k" -> top-1."""
        model, whole = load_model(ckpt), WholePlan(size=config.crop.size)
        options: dict[str, Any] = {"channels_last": config.channels_last}
        bank, bank_labels = extract_features(model, self.open(config, "train", whole), **options)
        queries, labels = extract_features(model, self.open(config, "val", whole), **options)
        k = self.scale.k
        return {
            f"{layer}, k {k}": knn_accuracy(bank[layer], bank_labels, queries[layer], labels, ks=[k])[k]
            for layer in bank
        }


def own_table(model: Method, loader: Loader, attention: AttentionConfig, channels_last: bool) -> BoxTable:
    """What the attention pass gives for these images."""
    return build_box_table(
        model,
        loader,
        delta=attention.delta,
        normalize=attention.normalize,
        score=attention.score,
        mirror=attention.mirror,
        channels_last=channels_last,
    )
