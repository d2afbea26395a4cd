"""One training epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.loaders import Batch, Loader
from saga_fast.methods import Progress, StepOutput
from saga_fast.optim import PhaseConfig, learning_rate, set_schedules
from saga_fast.runtime.distributed import gather, mean
from saga_fast.train.step import Training, Undo, backward_step, is_finite, update_step
from saga_fast.train.steps import NonFiniteLossError, Steps

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EpochPosition:
    """The place of an epoch in a run."""

    epoch: int
    """Counts from 0 over the run, and keys the augmentation."""
    phase: PhaseConfig
    phase_epoch: int
    """Counts from 0 over the phase, and sets the learning rate."""
    skipped: int = 0
    """Steps of earlier epochs that were skipped, see ``TrainConfig.skip_nonfinite``."""
    partial: Mapping[str, Any] | None = None
    """``Steps.state()`` of an interrupted run of this epoch, whose steps are not repeated."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """Figures of an epoch, over all its images or its wall time."""

    loss: float
    lr: float
    """Learning rate of the last step."""
    images_per_second: float
    data_wait: float
    """Fraction of the time spent waiting for the loader."""
    positive_similarity: float
    """Mean cosine similarity of positive pairs."""
    seconds: float
    skipped: int
    """Steps skipped because their loss was not finite."""
    online_top1: float | None
    """Top-1 of the online probe on the augmented training crops, each batch before it was learned from."""


def train_epoch(
    training: Training,
    loader: Loader,
    at: EpochPosition,
    *,
    progress: bool = False,
    after_step: Callable[[Steps], None] | None = None,
) -> EpochResult:
    """Train one epoch, and return its figures.

    Args:
        training: the model and the optimiser, changed in place.
        loader: training crops; set to the epoch here.
        at: the epoch's place in the run.
        progress: show a progress bar.
        after_step: called after each step.

    Raises:
        SagaError: fewer decodable images than a batch.
        NonFiniteLossError: checked every CHECK_EVERY steps and at the epoch's end, so that no step waits for a GPU; or,
            with ``config.skip_nonfinite``, at each step, after this number of skipped steps.
    """
    config, model, count = training.config, training.model, len(loader)
    if count == 0:
        raise SagaError(_too_few(loader))
    model.train()
    model.begin_epoch(config.seed, at.epoch)
    steps = Steps(count, model, partial=at.partial)
    loader.set_epoch(at.epoch, steps.done)
    undo = Undo(model) if config.skip_nonfinite else None
    rate = learning_rate(at.phase, at.phase_epoch + (count - 1) / count) if steps.done == count else 0.0
    mark = time.perf_counter()
    disable = None if progress else True
    bar = tqdm(loader, f"epoch {at.epoch + 1}", total=count, initial=steps.done, unit="batch", disable=disable)
    for batch in bar:
        steps.waited += time.perf_counter() - mark
        epochs = at.phase_epoch + steps.done / count
        rate = set_schedules(training.optimizer, config.optimizer, at.phase, epochs)
        model.progress = Progress(epochs=at.epoch + steps.done / count, phase=epochs / at.phase.epochs)
        if undo:
            undo.save()
        output = backward_step(training, batch, at.epoch)
        if undo and not is_finite(output.loss, model, gradients=not training.scaler.is_enabled()):
            undo.restore()
            _skip(training, steps, at, batch, output)
        else:
            update_step(training)
            steps.add(output, batch.index)
        steps.seconds += time.perf_counter() - mark
        mark = time.perf_counter()
        if after_step:
            after_step(steps)
    steps.settle()
    steps.seconds += time.perf_counter() - mark
    return _result(training, steps, rate)


def _too_few(loader: Loader) -> str:
    total, bad = len(loader.source), len(loader.bad)
    return (
        f"{total - bad} of the {total} images in {loader.source.root} can be decoded, fewer than batch_size"
        f" {loader.global_batch_size}: lower batch_size, or mend the images of bad_images.txt"
    )


def _skip(training: Training, steps: Steps, at: EpochPosition, batch: Batch, output: StepOutput) -> None:
    """
    Raises:
        NonFiniteLossError: ``config.skip_nonfinite`` steps were skipped before.
    """
    if at.skipped + steps.skipped == training.config.skip_nonfinite:
        raise NonFiniteLossError(steps.done, gather(batch.index).tolist(), float(mean(output.loss.detach())))
    steps.skip(batch.index)
    if training.probe:
        training.probe.drop()
    log.warning("skipped step %d of epoch %d: its loss or gradient is not finite", steps.done - 1, at.epoch + 1)


def _result(training: Training, steps: Steps, rate: float) -> EpochResult:
    losses, similarities = (values[values.isfinite()] for values in (steps.losses, steps.similarities))
    return EpochResult(
        loss=float(losses.mean()),
        lr=rate,
        images_per_second=steps.images / steps.seconds,
        data_wait=steps.waited / steps.seconds,
        positive_similarity=float(similarities.mean()),
        seconds=steps.seconds,
        skipped=steps.skipped,
        online_top1=training.probe.finish_epoch() if training.probe else None,
    )
