"""A run: its folder, and everything that its training changes. Set up afresh, or from the run's last checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from saga_fast.checkpoint import load_weights, open_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import config_to_dict
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import LAYERS
from saga_fast.evaluate.online_probe import OnlineProbe
from saga_fast.loaders import BadImages, Loader, Source, WholePlan, open_loader, open_source
from saga_fast.methods import Method, build_method
from saga_fast.models.encoder import Encoder
from saga_fast.models.modes import place_model
from saga_fast.models.sync_batchnorm import synchronise_batchnorm
from saga_fast.optim import build_optimizer
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.distributed import (
    StopRequest,
    broadcast,
    check_same,
    data_parallel,
    is_main,
    rank,
    world_size,
)
from saga_fast.runtime.files import write_text
from saga_fast.runtime.metrics import Metrics, read_metrics
from saga_fast.train.plan import crop_plan
from saga_fast.train.provider import check_provider
from saga_fast.train.renewal import Renewals
from saga_fast.train.state import read_state
from saga_fast.train.step import Training

log = logging.getLogger(__name__)

WHOLE_BATCH = 256
"""Largest batch of whole images in the attention pass and in evaluation: there each process takes whole batches, and
``batch_size`` may be what only all processes together can hold."""


@dataclass(kw_only=True)
class Run:
    """A run folder and the state of its training.

    Attributes:
        training: the model, the optimiser and the loss scaler.
        loader: training crops, shuffled.
        epoch: finished epochs.
        skipped: steps of finished epochs that were skipped because their loss was not finite.
        partial_epoch: the state of the steps of an interrupted epoch, or None.
        known_bad: undecodable images that the current epoch's order leaves out.
        found_bad: further ones that an interrupted epoch found.
        resumed: whether the run was set up from its checkpoint.
        evaluation_is_missing: whether the network is to be evaluated before training goes on: at a run's start, and
            where an evaluation was interrupted after its checkpoint.
    """

    config: TrainConfig
    folder: Path
    device: torch.device
    source: Source
    val: Source | None
    training: Training
    bad: BadImages
    loader: Loader
    renewals: Renewals
    metrics: Metrics
    progress: bool
    resumed: bool
    evaluation_is_missing: bool
    epoch: int = 0
    skipped: int = 0
    partial_epoch: dict[str, Any] | None = None
    known_bad: list[int] = field(default_factory=list)
    found_bad: list[int] = field(default_factory=list)
    stop_request: StopRequest = field(default_factory=StopRequest)

    @property
    def last(self) -> Path:
        """The path of last.pt."""
        return self.folder / "last.pt"

    def open_whole(self, plan: WholePlan, source: Source | None = None) -> Loader:
        """A loader of whole images in order, of the training images or of another data set."""
        bad = None if source is None else BadImages(source, max_fraction=self.config.data.max_bad_fraction)
        return _open_whole(self.config, self.device, source or self.source, plan, self.bad if bad is None else bad)


def open_run(config: TrainConfig, *, ckpt: Path | None, progress: bool) -> Run:
    """The run of ``config.out``, set up from its last checkpoint if it has one, else afresh.

    Raises:
        SagaError: a config that cannot be trained, or that differs from the one being resumed.
    """
    _check_parts(config)
    folder = Path(config.out)
    last = folder / "last.pt"
    exists = broadcast(last.exists())
    device = choose_device(config.device)
    source = _open_source(config, config.data.train)
    val = _open_source(config, config.data.val) if config.data.val else None
    torch.manual_seed(config.seed)
    model = build_model(config, source)
    state = read_state(last, config, source) if exists else {}
    bad = BadImages(source, max_fraction=config.data.max_bad_fraction, known=state.get("bad_images", []))
    _load_weights(model, state, config, ckpt)
    check_provider(config, model, source)
    _place(model, config, device)
    training = Training(
        config=config,
        model=model,
        network=data_parallel(model, device),
        optimizer=build_optimizer(config.optimizer, model),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        probe=_online_probe(config, model, source),
    )
    renewals = Renewals(config, model, source, lambda plan: _open_whole(config, device, source, plan, bad))
    if exists:
        training.restore(state)
        renewals.load_state(state)
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(config_to_dict(config), sort_keys=False))
    options = replace(config.loader_options(device), shuffle=True, drop_last=True, rank=rank(), world_size=world_size())
    loader = open_loader(config.data.engine, source, crop_plan(config, model), options, bad=bad)
    epoch, partial_epoch = state.get("epoch", 0 if ckpt is None else config.plain.epochs), state.get("so_far")
    evaluated = exists and broadcast(partial_epoch is not None or _is_evaluated(config, folder, epoch, len(source)))
    return Run(
        config=config,
        folder=folder,
        device=device,
        source=source,
        val=val,
        training=training,
        bad=bad,
        loader=loader,
        renewals=renewals,
        metrics=_open_metrics(config, epoch, partial=partial_epoch is not None, resumed=exists, evaluated=evaluated),
        progress=progress,
        resumed=exists,
        evaluation_is_missing=not evaluated,
        epoch=epoch,
        skipped=state.get("skipped", 0),
        partial_epoch=partial_epoch,
        known_bad=state.get("bad_images", []),
        found_bad=state.get("bad_found", []),
    )


def _check_parts(config: TrainConfig) -> None:
    """
    Raises:
        SagaError: a process's images of a step cannot be split evenly into ``accumulate`` parts.
    """
    processes, parts = world_size(), config.accumulate
    if parts > 1 and config.batch_size % (processes * parts):
        raise SagaError(
            f"batch_size {config.batch_size} cannot be split evenly into accumulate {parts} parts of {processes}"
            f" processes: set a multiple of {processes * parts}"
        )


def _open_source(config: TrainConfig, path: str) -> Source:
    source = open_source(config.data.engine, path, classes=config.data.classes, cache=config.data.cache)
    check_same({"the data set": source.fingerprint})
    return source


def build_model(config: TrainConfig, source: Source) -> Method:
    """The untrained method of a config, for its training images.

    Raises:
        SagaError: a method that cannot be trained with these images, or not with the config's views.
    """
    labels = torch.from_numpy(source.labels) if source.classes else None
    model = build_method(config.method, config.encoder, num_images=len(source), labels=labels, parts=config.accumulate)
    if not model.contrastive and labels is None:
        raise SagaError(
            f"method {config.method.name} needs labelled images, one folder per class: {source.root} has none"
        )
    if config.second_photometric is not None and model.num_views == 1:
        raise SagaError(
            f"second_photometric needs a method with two views, and {config.method.name} has one: set it to null"
        )
    single_view = model.num_views == 1 and not model.more_views
    if single_view and config.attention is not None and config.attention.views == "mixed":
        raise SagaError(
            f"attention.views=mixed needs two views, and method {config.method.name} has one: set att, union or paste"
        )
    return model


def _online_probe(config: TrainConfig, model: Method, source: Source) -> OnlineProbe | None:
    """The online probe, if it is wanted and the training images are labelled."""
    if config.evaluate is None or not config.evaluate.online_probe:
        return None
    if not source.classes or source.labels.min() < 0:
        log.info("no online probe: the images in %s are not labelled", source.root)
        return None
    return OnlineProbe(model, len(source.classes))


def _load_weights(model: Method, state: dict[str, Any], config: TrainConfig, ckpt: Path | None) -> None:
    """Load the weights of the resumed run, or those of ``ckpt``. Fine-tuning from SAGA epochs logs a warning."""
    if state:
        load_weights(model, state["model"], Path(config.out) / "last.pt")
    if state or ckpt is None:
        return
    checkpoint = open_checkpoint(ckpt)
    load_weights(model, checkpoint.state, ckpt)
    if config.attention is None and checkpoint.used_boxes and is_main():
        log.warning(
            "%s has SAGA epochs in it: with attention=null this run is no baseline without attention crops, start it"
            " from a plain checkpoint (saga.epochs=0)",
            ckpt,
        )


def _place(model: Method, config: TrainConfig, device: torch.device) -> None:
    """Move the model to the device, in the config's memory format, batch norm and compilation."""
    place_model(model, device, channels_last=config.channels_last)
    synchronised = model.sync_batchnorm if config.sync_batchnorm is None else config.sync_batchnorm
    if world_size() > 1 and synchronised:
        synchronise_batchnorm(model, device)
    if config.compile:
        for module in model.modules():
            if isinstance(module, Encoder):
                module.compile()


def _open_whole(config: TrainConfig, device: torch.device, source: Source, plan: WholePlan, bad: BadImages) -> Loader:
    options = replace(config.loader_options(device), batch_size=min(config.batch_size, WHOLE_BATCH))
    return open_loader(config.data.engine, source, plan, options, bad=bad)


def _is_evaluated(config: TrainConfig, folder: Path, epoch: int, num_images: int) -> bool:
    """Whether the evaluation after this epoch's checkpoint is complete, or none is due."""
    evaluate, total = config.evaluate, config.plain.epochs + config.saga.epochs
    if evaluate is None or config.data.val is None:
        return True
    rows = read_metrics(folder)
    is_start = not any(row["kind"] == "epoch" for row in rows)
    if not is_start and epoch % evaluate.every and epoch != total:
        return True
    # kNN's rows are written last, in the order of layers and k, so the last one means that all are there.
    ks = [k for k in evaluate.k if k <= num_images]
    last = LAYERS[-1], ks[-1] if ks else None
    return not ks or any(
        (row["kind"], row["epoch"], row.get("layer"), row.get("k")) == ("knn", epoch, *last) for row in rows
    )


def _open_metrics(config: TrainConfig, epoch: int, *, partial: bool, resumed: bool, evaluated: bool) -> Metrics:
    """The run's figures, without the rows that the resumed run writes again.

    The evaluation and the renewal at epoch E come after the checkpoint of epoch E. A renewal is repeated when resuming
    from it, unless the checkpoint holds steps of the next epoch, and so is an evaluation that is not complete.
    """
    repeated = {"renewal"} if evaluated else {"renewal", "rankme", "online", "knn"}

    def keep(row: dict[str, Any]) -> bool:
        return resumed and row["epoch"] < epoch + (partial or row["kind"] not in repeated)

    plain = config_to_dict(config)
    return Metrics(Path(config.out), keep=keep, loggers=config.logger, config=plain, writes=is_main())
