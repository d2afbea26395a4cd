"""The training cycle: plain epochs, then SAGA epochs with D^att renewed every P of them (SAGA, section 2.3)."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from saga_fast.checkpoint import load_weights, read_checkpoint, save_checkpoint
from saga_fast.demo_data import make_demo_data
from saga_fast.device import choose_device
from saga_fast.distributed import (
    Agreement,
    agree,
    barrier,
    begin,
    broadcast,
    check_same,
    is_main,
    rank,
    world_size,
    wrapped,
)
from saga_fast.encoder import Encoder
from saga_fast.errors import SagaError
from saga_fast.evaluate.knn import align_labels, extract_features, knn_accuracy
from saga_fast.files import write_text
from saga_fast.loaders import BadImages, Loader, Plan, Source, WholePlan, open_loader, open_source
from saga_fast.loaders.plan import SizesKept
from saga_fast.methods import build_method
from saga_fast.report.sheet import draw_sheet, spread_over
from saga_fast.stopping import asked_to_stop, stop, stopping_in_order
from saga_fast.sync_batchnorm import synchronise_batchnorm
from saga_fast.train.config import TrainConfig, config_to_dict
from saga_fast.train.epoch import EpochResult, train_epoch
from saga_fast.train.metrics import Metrics
from saga_fast.train.optimizer import PhaseConfig, build_optimizer
from saga_fast.train.plan import crop_plan
from saga_fast.train.provider import check_provider
from saga_fast.train.renewal import Renewals
from saga_fast.train.state import position, read_state, restore_training_state, share_statistics, training_state
from saga_fast.train.steps import NonFiniteLossError, Steps

log = logging.getLogger(__name__)

WHOLE_BATCH = 256
"""At most so many images are looked at together in the attention pass and in evaluation. Each process takes whole
batches there, and ``batch_size`` may be what all of them together can just hold."""


def train(config: TrainConfig, *, resume: bool = False, ckpt: Path | None = None, progress: bool = False) -> Path:
    """Run an experiment into ``config.out``: all processes that torchrun started together, or this one alone.

    SIGTERM ends it at the next step, with a checkpoint and SystemExit 143.

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
    with stopping_in_order():
        run = _Run(config, resume=resume, ckpt=ckpt, progress=progress and is_main())
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
        exists = broadcast(self.last.exists())
        resuming = resume and exists
        if exists and not resume:
            raise SagaError(f"{self.folder} holds a run already: go on with --resume, or choose another --out")
        begin(config.out)
        if config.data.generate and is_main():
            make_demo_data(Path(config.data.train).parent, config.data.generate)
        barrier()
        self.device = choose_device(config.device)
        self.source = self._open_source(config.data.train)
        self.val = self._open_source(config.data.val) if config.data.val else None

        torch.manual_seed(config.seed)
        self.model = build_method(config.method, config.encoder, num_images=len(self.source))
        if not self.model.trainable:
            raise SagaError(
                f"method {config.method.name} cannot be trained: it is a classifier whose attention gives boxes,"
                " see saga-fast build-att"
            )
        alone = self.model.num_views == 1 and not self.model.more_views
        if alone and config.attention is not None and config.attention.views == "mixed":
            raise SagaError(
                f"attention.views=mixed needs two views, and method {config.method.name} has one: set att or union"
            )
        self.epoch = 0
        self.skipped = 0
        self.so_far: dict[str, Any] | None = None  # of an epoch that an earlier run began
        self.stop = Agreement()
        state = read_state(self.last, config, self.source) if resuming else {}
        known = state.get("bad_images", [])
        self.bad = BadImages(self.source, max_fraction=config.data.max_bad_fraction, known=known)
        self.known, self.found = known, state.get("bad_found", [])
        if not resuming and ckpt is not None:
            load_weights(self.model, read_checkpoint(ckpt)["model"], ckpt)
            self.epoch = config.plain.epochs
        if resuming:
            load_weights(self.model, state["model"], self.last)
            self.epoch, self.so_far, self.skipped = state["epoch"], state.get("so_far"), state.get("skipped", 0)
        check_provider(config.attention, self.source)
        self.model.to(self.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        synchronised = self.model.sync_batchnorm if config.sync_batchnorm is None else config.sync_batchnorm
        if world_size() > 1 and synchronised:
            synchronise_batchnorm(self.model, self.device)
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.renewals = Renewals(config, self.model, self.source, lambda plan: self._open(plan, shuffle=False))
        if resuming:
            restore_training_state(state, self.optimizer, self.scaler, self.device)
            self.renewals.load_state(state)
        if config.compile:
            for module in self.model.modules():
                if isinstance(module, Encoder):
                    module.compile()

        self.network = wrapped(self.model, self.device)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "config.yaml", yaml.safe_dump(config_to_dict(config), sort_keys=False))
        self.loader = self._open(crop_plan(config, self.model), shuffle=True)
        # A renewal at epoch E comes after the checkpoint of epoch E and is repeated when resuming from it, unless that
        # holds steps of the next epoch.
        began = self.so_far is not None
        self.metrics = Metrics(
            self.folder,
            keep=lambda row: resuming and (row["epoch"] < self.epoch + (began or row["kind"] != "renewal")),
            writes=is_main(),
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
            if in_saga and self.renewals.is_due(phase_epoch) and not self.so_far:
                self._renew()
            plan: Plan = crop_plan(config, self.model, self.renewals.table)
            stream = self.renewals.stream(self.epoch)
            self.loader.set_plan(plan if stream is None else SizesKept(plan, stream.sizes))
            agree(self.bad)
            self.known = self.bad.indices.tolist()
            result = self._train_epoch(phase, phase_epoch)
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
            agree(self.bad)
            share_statistics(self.model)
            if config.evaluate and (self.epoch % config.evaluate.every == 0 or self.epoch == total):
                self._evaluate()
            self._save()

    def _train_epoch(self, phase: PhaseConfig, phase_epoch: int) -> EpochResult:
        try:
            result = train_epoch(
                self.config,
                phase,
                self.model,
                self.optimizer,
                self.scaler,
                self.loader,
                epoch=self.epoch,
                phase_epoch=phase_epoch,
                progress=self.progress,
                network=self.network,
                so_far=self.so_far,
                skipped=self.skipped,
                after_step=self._after_step,
                stream=self.renewals.stream(self.epoch),
            )
        except NonFiniteLossError as error:
            raise self._explained(error, phase) from error
        self.so_far = None
        self.skipped += result.skipped
        self.bad.update(dict.fromkeys(self.found, "found by an earlier run"))
        self.found = []
        return result

    def _after_step(self, steps: Steps) -> None:
        """Write last.pt when it is time, and stop when any process has been asked to."""
        every = self.config.checkpoint.every_steps
        stopping = self.stop.ask(asked_to_stop())
        if stopping or (every and steps.done % every == 0 and steps.done < len(steps.losses)):
            self._save(steps)
        if stopping:
            log.info("stopped after step %d of epoch %d; go on with --resume", steps.done, self.epoch + 1)
            stop()

    def _explained(self, error: NonFiniteLossError, phase: PhaseConfig) -> SagaError:
        """The error with the images of the batch and the checkpoint to go on from."""
        state = broadcast(position(read_checkpoint(self.last)) if is_main() else "")
        path = self.folder / "nonfinite.txt"
        if is_main():
            write_text(path, "".join(f"{index}\t{self.source.paths[index]}\n" for index in error.indices))
        some = ", ".join(map(str, error.indices[:16])) + (", ..." if len(error.indices) > 16 else "")
        return SagaError(
            f"the {error.what} is not finite since step {error.step} of epoch {self.epoch + 1}: loss {error.value},"
            f" images {some}, see {path}; lower the learning rate ({phase.lr:g}), raise the precision or set"
            f" skip_nonfinite; last.pt holds {state}"
        )

    def _open_source(self, path: str) -> Source:
        source = open_source(self.config.data.engine, path, classes=self.config.data.classes)
        check_same({"the data set": source.fingerprint})
        return source

    def _open(self, plan: Plan, *, shuffle: bool, source: Source | None = None) -> Loader:
        config = self.config
        shares: dict[str, Any] = {"batch_size": min(config.batch_size, WHOLE_BATCH)}
        if shuffle:
            shares = {"batch_size": config.batch_size, "rank": rank(), "world_size": world_size()}
        return open_loader(
            config.data.engine,
            source or self.source,
            plan,
            **shares,
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

    def _renew(self) -> None:
        figures = self.renewals.renew(self.epoch, progress=self.progress)
        table = self.renewals.table
        assert table is not None
        self.metrics.add("renewal", self.epoch, **figures)
        if is_main():
            shown = spread_over(np.arange(len(table)), 32).tolist()
            self.metrics.add_picture("attention/boxes", self.epoch, draw_sheet(self.source, table, shown, columns=8))
            self.bad.write(self.folder / "bad_images.txt")
        log.info(
            "renewed D^att: looked at %d images, found %.1f %%, mean area %.3f, %.0f images/s",
            figures["computed"],
            100 * table.found_fraction,
            table.mean_area,
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
        if not is_main():
            return
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

    def _save(self, steps: Steps | None = None) -> None:
        """Write last.pt at an epoch's end, or after some steps of an epoch."""
        so_far = steps.state() if steps else None
        agree(self.bad)
        tables = self.renewals.state()
        if is_main():
            found = sorted({*self.bad.indices.tolist(), *self.found})
            content = {
                "config": config_to_dict(self.config),
                "epoch": self.epoch,
                "so_far": so_far,
                "skipped": self.skipped,
                **training_state(self.model, self.optimizer, self.scaler, self.device),
                **tables,
                "dataset": self.source.fingerprint,
                # An epoch's order leaves out those known at its beginning.
                "bad_images": self.known if steps else found,
                "bad_found": found,
            }
            self.bad.write(self.folder / "bad_images.txt")
            keep = self.config.checkpoint.keep_every
            if keep and self.epoch % keep == 0 and not steps:
                save_checkpoint(self.folder / f"epoch_{self.epoch:04d}.pt", content)
            save_checkpoint(self.last, content)  # at last: who goes on from it writes nothing of the above again
        barrier()
