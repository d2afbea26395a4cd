"""The training cycle: plain epochs, then SAGA epochs with D^att renewed every P of them (SAGA, section 2.3)."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from saga_fast.attention import box_iou, build_box_table
from saga_fast.checkpoint import checkpoint_config, load_model, load_weights, read_checkpoint, save_checkpoint
from saga_fast.demo_data import make_demo_data, read_true_boxes
from saga_fast.device import choose_device
from saga_fast.encoder import Encoder
from saga_fast.errors import SagaError
from saga_fast.evaluate.knn import align_labels, extract_features, knn_accuracy
from saga_fast.files import sha256, write_text
from saga_fast.loaders import BadImages, BoxTable, CropPlan, Loader, Source, WholePlan, open_loader, open_source
from saga_fast.methods import Method, build_method
from saga_fast.train.config import CheckpointConfig, TrainConfig, config_to_dict
from saga_fast.train.epoch import train_epoch
from saga_fast.train.metrics import Metrics
from saga_fast.train.optimizer import build_optimizer

log = logging.getLogger(__name__)


def train(config: TrainConfig, *, resume: bool = False, ckpt: Path | None = None, progress: bool = False) -> Path:
    """Run an experiment into ``config.out``.

    Args:
        config: the experiment.
        resume: go on from ``out/last.pt``; a run that has none starts afresh, a finished one returns at once.
        ckpt: start from this checkpoint's weights, at the start of the SAGA phase (the plain phase counts as done).
        progress: show progress bars on stderr.

    Returns:
        The path of ``last.pt``.

    Raises:
        SagaError: a run folder in use, a config that differs from the one being resumed, or what the parts refuse.
    """
    run = _Run(config, resume=resume, ckpt=ckpt, progress=progress)
    try:
        run.go()
    finally:
        run.metrics.close()
    return run.last


class _Run:
    """A run folder and the state of its training."""

    def __init__(self, config: TrainConfig, *, resume: bool, ckpt: Path | None, progress: bool) -> None:
        self.config, self.progress = config, progress
        self.folder = Path(config.out)
        self.last = self.folder / "last.pt"
        resuming = resume and self.last.exists()
        if self.last.exists() and not resume:
            raise SagaError(f"{self.folder} holds a run already: go on with --resume, or choose another --out")
        if config.data.generate:
            make_demo_data(Path(config.data.train).parent, config.data.generate)
        self.device = choose_device(config.device)
        self.source = self._open_source(config.data.train)
        self.val = self._open_source(config.data.val) if config.data.val else None

        torch.manual_seed(config.seed)
        self.model = build_method(config.method, config.encoder, num_images=len(self.source))
        alone = self.model.num_views == 1 and not self.model.more_views
        if alone and config.attention is not None and config.attention.views == "mixed":
            raise SagaError(
                f"attention.views=mixed needs two views, and method {config.method.name} has one: set att or union"
            )
        self.epoch = 0
        self.table: BoxTable | None = None
        self.table_entry: dict[str, str] | None = None
        state = self._read_state() if resuming else {}
        self.bad = BadImages(self.source, max_fraction=config.data.max_bad_fraction, known=state.get("bad_images", []))
        if not resuming and ckpt is not None:
            load_weights(self.model, read_checkpoint(ckpt)["model"], ckpt)
            self.epoch = config.plain.epochs
        if resuming:
            load_weights(self.model, state["model"], self.last)
            self.epoch = state["epoch"]
        if config.attention is not None and config.attention.provider_ckpt is not None:
            self._classifier()  # refused now rather than after the plain epochs
        self.model.to(self.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        if resuming:
            self._restore(state)
        if config.compile:
            for module in self.model.modules():
                if isinstance(module, Encoder):
                    module.compile()

        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.yaml", yaml.safe_dump(config_to_dict(config), sort_keys=False))
        self.loader = self._open(CropPlan(size=config.crop.size, seed=config.seed), shuffle=True)
        # A renewal at epoch E comes after the checkpoint of epoch E and is repeated when resuming from it.
        self.metrics = Metrics(
            self.folder,
            keep=lambda row: resuming and (row["epoch"] < self.epoch + (row["kind"] != "renewal")),
        )
        if not resuming:
            self._evaluate()
            self._save()

    def go(self) -> None:
        """Train from the current epoch to the end."""
        config = self.config
        total = config.plain.epochs + config.saga.epochs
        while self.epoch < total:
            in_saga = self.epoch >= config.plain.epochs
            phase = config.saga if in_saga else config.plain
            phase_epoch = self.epoch - config.plain.epochs * in_saga
            if in_saga and self._is_due(phase_epoch):
                self._renew()
            self.loader.set_plan(self._crop_plan())
            result = train_epoch(
                config,
                phase,
                self.model,
                self.optimizer,
                self.scaler,
                self.loader,
                epoch=self.epoch,
                phase_epoch=phase_epoch,
                progress=self.progress,
            )
            self.epoch += 1
            name = "saga" if in_saga else "plain"
            self.metrics.add("epoch", self.epoch, phase=name, **asdict(result))
            log.info(
                "epoch %d/%d (%s): loss %.4f, %.0f images/s, waiting for data %.0f %%",
                self.epoch,
                total,
                name,
                result.loss,
                result.images_per_second,
                100 * result.data_wait,
            )
            if config.evaluate and (self.epoch % config.evaluate.every == 0 or self.epoch == total):
                self._evaluate()
            self._save()

    def _crop_plan(self) -> CropPlan:
        plan = CropPlan(
            size=self.config.crop.size,
            seed=self.config.seed,
            num_views=self.model.num_views,
            scale=self.config.crop.scale,
            ratio=self.config.crop.ratio,
            more=self.model.more_views,
        )
        if self.table is None or self.config.attention is None:
            return plan
        a = self.config.attention
        return replace(plan, table=self.table, views=a.views, share=a.share, margin=a.margin, min_side=a.min_side)

    def _open_source(self, path: str) -> Source:
        return open_source(self.config.data.engine, path, classes=self.config.data.classes)

    def _open(self, plan: CropPlan | WholePlan, *, shuffle: bool, source: Source | None = None) -> Loader:
        config = self.config
        return open_loader(
            config.data.engine,
            source or self.source,
            plan,
            batch_size=config.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            seed=config.seed,
            bad=self.bad if source is None else BadImages(source, max_fraction=config.data.max_bad_fraction),
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            device=self.device,
            decode=config.data.decode,
            crop=config.data.crop,
            max_pixels=config.data.max_pixels,
        )

    def _is_due(self, phase_epoch: int) -> bool:
        """Whether D^att is renewed before this epoch; a classifier, which does not change, makes it once."""
        a = self.config.attention
        if a is None or phase_epoch % a.period != 0:
            return False
        return a.provider == "self" or self.table is None

    def _classifier(self) -> Method:
        """The network whose attention is taken in place of the own one's."""
        assert self.config.attention is not None and self.config.attention.provider_ckpt is not None
        model = load_model(self.config.attention.provider_ckpt).to(self.device)
        return model.to(memory_format=torch.channels_last) if self.config.channels_last else model

    def _renew(self) -> None:
        """Algorithm 1: a new D^att from the network as it is now."""
        a = self.config.attention
        assert a is not None
        start = time.perf_counter()
        supervised = a.provider_ckpt is not None
        self.table = build_box_table(
            self._classifier() if supervised else self.model,
            self._open(WholePlan(size=self.config.crop.size), shuffle=False),
            delta=a.delta,
            normalize=a.normalize,
            score=a.score,
            precision=self.config.precision,
            channels_last=self.config.channels_last,
            metadata={"checkpoint": sha256(Path(a.provider_ckpt or self.last)), "epoch": str(self.epoch)},
            progress=self.progress,
        )
        seconds = time.perf_counter() - start
        name = f"att/epoch_{self.epoch:04d}.safetensors"
        self.table.save(self.folder / name)
        self.table_entry = {"name": name, "sha256": sha256(self.folder / name)}
        figures: dict[str, Any] = {
            "table": name,
            "found_fraction": self.table.found_fraction,
            "box_area": self.table.mean_area,
            "images_per_second": len(self.table) / seconds,
            "seconds": seconds,
            "iou": None,
            "corloc": None,
        }
        if self.config.data.true_boxes:
            overlap = box_iou(self.table.boxes, read_true_boxes(self.source.root, self.source.paths))
            figures |= {"iou": float(overlap.mean()), "corloc": float(np.mean(overlap >= 0.5))}
        self.metrics.add("renewal", self.epoch, **figures)
        self.bad.write(self.folder / "bad_images.txt")
        log.info(
            "renewed D^att: found %.1f %%, mean area %.3f, %.0f images/s",
            100 * self.table.found_fraction,
            self.table.mean_area,
            figures["images_per_second"],
        )

    def _evaluate(self) -> None:
        """kNN of the validation images among the training images."""
        evaluate = self.config.evaluate
        if evaluate is None or self.val is None:
            return
        whole = WholePlan(size=self.config.crop.size)
        options: dict[str, Any] = {"precision": self.config.precision, "channels_last": self.config.channels_last}
        bank, bank_labels = extract_features(self.model, self._open(whole, shuffle=False), **options)
        queries, labels = extract_features(self.model, self._open(whole, shuffle=False, source=self.val), **options)
        labels = align_labels(labels, self.val, self.source)
        ks = [k for k in evaluate.k if k <= len(bank_labels)]
        if len(ks) < len(evaluate.k):
            log.warning("kNN leaves out k > %d, the number of training images", len(bank_labels))
        if not ks:
            return
        for layer in bank:
            accuracies = knn_accuracy(
                bank[layer], bank_labels, queries[layer], labels, ks=ks, temperature=evaluate.temperature
            )
            for k, top1 in accuracies.items():
                self.metrics.add("knn", self.epoch, layer=layer, k=k, top1=top1, images=len(labels))
                log.info("epoch %d: kNN (%s, k %d) %.1f %%", self.epoch, layer, k, 100 * top1)

    def _save(self) -> None:
        content = {
            "config": config_to_dict(self.config),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "box_table": self.table_entry,
            "dataset": self.source.fingerprint,
            "bad_images": self.bad.indices.tolist(),
        }
        save_checkpoint(self.last, content)
        keep = self.config.checkpoint.keep_every
        if keep and self.epoch % keep == 0:
            save_checkpoint(self.folder / f"epoch_{self.epoch:04d}.pt", content)
        self.bad.write(self.folder / "bad_images.txt")

    def _read_state(self) -> dict[str, Any]:
        state = read_checkpoint(self.last)
        earlier, now = (_what_matters(config) for config in (checkpoint_config(state, self.last), self.config))
        differing = [key for key in now if now[key] != earlier[key]]
        if differing:
            raise SagaError(
                f"cannot resume {self.folder} with another {', '.join(differing)}:"
                " take its config.yaml or another --out"
            )
        if state["dataset"] != self.source.fingerprint:
            raise SagaError(
                f"cannot resume {self.folder}: it was trained on data set {state['dataset']}, {self.source.root} is"
                f" {self.source.fingerprint}"
            )
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        self.table_entry = state["box_table"]
        if self.table_entry is not None:
            path = self.folder / self.table_entry["name"]
            if not path.is_file() or sha256(path) != self.table_entry["sha256"]:
                raise SagaError(f"cannot resume {self.folder}: {path} is missing or not the table of last.pt")
            self.table = BoxTable.open(path)


def _what_matters(config: TrainConfig) -> dict[str, Any]:
    """The config without what leaves a run's result as it is; the data set itself is compared by its fingerprint."""
    free = replace(config.data, train="", val=None, threads=None, prefetch=0, max_bad_fraction=1.0)
    return config_to_dict(
        replace(config, out="", device="auto", evaluate=None, checkpoint=CheckpointConfig(), data=free)
    )
