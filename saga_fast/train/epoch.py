"""One epoch of training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from saga_fast.distributed import gather, mean
from saga_fast.kernels import sample_photometrics
from saga_fast.kernels.sample_photometrics.fields import FLIP
from saga_fast.loaders import Batch, Loader
from saga_fast.methods import Method
from saga_fast.precision import autocast, normalized
from saga_fast.streaming import StreamedMaps
from saga_fast.train.config import TrainConfig
from saga_fast.train.optimizer import PhaseConfig, learning_rate
from saga_fast.train.steps import NonFiniteLossError, Steps, Undo, is_finite

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """Figures of an epoch, all over its images or its wall time."""

    loss: float
    lr: float
    """At the last step."""
    images_per_second: float
    data_wait: float
    """Fraction of the time spent waiting for the loader."""
    positive_similarity: float
    """Mean cosine similarity of positive pairs."""
    seconds: float
    skipped: int
    """Steps left out because their loss was not finite."""


def device_views(config: TrainConfig, model: Method, batch: Batch, epoch: int) -> list[torch.Tensor]:
    """The batch's main views, then the groups of ``model.more_views``: (B, V, 3, S, S) on the device, augmented.

    The views of a group are numbered on from those before it: ``photometrics[:, first:]``.
    """
    device = next(model.parameters()).device
    groups = [(batch.views, config.photometric)]
    groups += [(views, group.photometric) for views, group in zip(batch.more, model.more_views, strict=True)]
    result, first = [], 0
    for views, recipe in groups:
        last = first + views.shape[1]
        photometrics = sample_photometrics(recipe, config.seed, epoch, batch.index, last)[:, first:]
        result.append(
            normalized(views, model.encoder, device, photometrics=photometrics, channels_last=config.channels_last)
        )
        first = last
    return result


def _stream(
    stream: StreamedMaps, config: TrainConfig, model: Method, loader: Loader, index: torch.Tensor, epoch: int
) -> None:
    """Let the stream take the main views of a step, before the network changes."""
    rows = index.numpy()
    windows = loader.plan.windows(epoch, rows, stream.sizes[rows])
    drawn = sample_photometrics(config.photometric, config.seed, epoch, index, model.num_views)
    stream.add(index, windows, drawn[:, :, FLIP] > 0.5)


def train_epoch(
    config: TrainConfig,
    phase: PhaseConfig,
    model: Method,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader: Loader,
    *,
    epoch: int,
    phase_epoch: int,
    progress: bool,
    network: nn.Module | None = None,
    so_far: Mapping[str, Any] | None = None,
    skipped: int = 0,
    after_step: Callable[[Steps], None] | None = None,
    stream: StreamedMaps | None = None,
) -> EpochResult:
    """Train one epoch: views from the loader, photometrics and normalisation here, loss and update by the method.

    Args:
        config, phase: the run's numbers, and the phase's learning rate.
        model, optimizer, scaler: changed in place.
        loader: set to ``epoch``.
        epoch: counts from 0 over the whole run and keys the augmentation.
        phase_epoch: counts from 0 over the phase and sets the learning rate.
        progress: show a progress bar.
        network: ``model`` as it is to be called, under DistributedDataParallel say.
        so_far: ``Steps.state()`` of an earlier run that began this epoch: its steps are not made again.
        skipped: steps skipped in earlier epochs, of ``config.skip_nonfinite``.
        after_step: called after every step.
        stream: takes the views of every step; the loader's plan is :class:`~saga_fast.loaders.plan.SizesKept` of its
            ``sizes``.

    Raises:
        NonFiniteLossError: found every so many steps and at the epoch's end, so that no step waits for a GPU; or, when
            ``config.skip_nonfinite`` is set, which looks at every step, when so many have been skipped.
    """
    device = next(model.parameters()).device
    model.train()
    model.begin_epoch(config.seed, epoch)
    count = len(loader)
    steps = Steps(count, model, so_far=so_far)
    loader.set_epoch(epoch, steps.done)
    undo = Undo(model) if config.skip_nonfinite else None
    rate = learning_rate(phase, phase_epoch + (count - 1) / count) if steps.done == count else 0.0
    mark = time.perf_counter()
    options: dict[str, Any] = {"total": count, "initial": steps.done, "unit": "batch"}
    for batch in tqdm(loader, desc=f"epoch {epoch + 1}", disable=None if progress else True, **options):
        steps.waited += time.perf_counter() - mark
        rate = learning_rate(phase, phase_epoch + steps.done / count)
        for group in optimizer.param_groups:
            group["lr"] = rate
        views = device_views(config, model, batch, epoch)
        if undo:
            undo.keep()
        if stream:
            stream.watch()
        with autocast(device, config.precision):
            output = (network or model)(views[0], batch.index.to(device), *views[1:])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(output.loss).backward()
        if undo and not is_finite(output.loss, model, gradients=not scaler.is_enabled()):
            undo.put_back()
            if skipped + steps.skipped == config.skip_nonfinite:
                raise NonFiniteLossError(steps.done, gather(batch.index).tolist(), float(mean(output.loss.detach())))
            steps.skip(batch.index)
            if stream:
                stream.drop()
            log.warning("skipped step %d of epoch %d: its loss or gradient is not finite", steps.done - 1, epoch + 1)
        else:
            if stream:
                _stream(stream, config, model, loader, batch.index, epoch)
            scaler.step(optimizer)
            scaler.update()
            model.after_step()
            steps.add(output, batch.index)
        steps.seconds += time.perf_counter() - mark
        mark = time.perf_counter()
        if after_step:
            after_step(steps)
    steps.settle()
    steps.seconds += time.perf_counter() - mark
    losses, similarities = (values[values.isfinite()] for values in (steps.losses, steps.similarities))
    return EpochResult(
        loss=float(losses.mean()),
        lr=rate,
        images_per_second=steps.images / steps.seconds,
        data_wait=steps.waited / steps.seconds,
        positive_similarity=float(similarities.mean()),
        seconds=steps.seconds,
        skipped=steps.skipped,
    )
