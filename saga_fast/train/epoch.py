"""One epoch of training."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.kernels import sample_photometrics
from saga_fast.loaders import Batch, Loader
from saga_fast.methods import Method
from saga_fast.precision import autocast, normalized
from saga_fast.train.config import TrainConfig
from saga_fast.train.optimizer import PhaseConfig, learning_rate


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
) -> EpochResult:
    """Train one epoch: views from the loader, photometrics and normalisation here, loss and update by the method.

    Args:
        config, phase: the run's numbers, and the phase's learning rate.
        model, optimizer, scaler: changed in place.
        loader: set to ``epoch``.
        epoch: counts from 0 over the whole run and keys the augmentation.
        phase_epoch: counts from 0 over the phase and sets the learning rate.
        progress: show a progress bar.

    Raises:
        SagaError: the loss is not finite.
    """
    device = next(model.parameters()).device
    model.train()
    model.begin_epoch(config.seed, epoch)
    loader.set_epoch(epoch)
    steps = len(loader)
    losses, similarities = torch.zeros(steps, device=device), torch.zeros(steps, device=device)
    waited, images, rate = 0.0, 0, 0.0
    start = mark = time.perf_counter()
    bar = tqdm(loader, total=steps, desc=f"epoch {epoch + 1}", unit="batch", disable=None if progress else True)
    for step, batch in enumerate(bar):
        waited += time.perf_counter() - mark
        rate = learning_rate(phase, phase_epoch + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        views = device_views(config, model, batch, epoch)
        with autocast(device, config.precision):
            output = model(views[0], batch.index.to(device), *views[1:])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(output.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        model.after_step()
        losses[step], similarities[step] = output.loss.detach(), output.positive_similarity
        images += len(batch.index)
        mark = time.perf_counter()
    loss = float(losses.mean())
    seconds = time.perf_counter() - start
    if not bool(torch.isfinite(losses).all()):
        step = int(torch.isfinite(losses).logical_not().nonzero()[0, 0])
        raise SagaError(
            f"the loss is not finite since step {step} of epoch {epoch + 1}: lower the learning rate ({rate:g})"
            " or raise the precision; last.pt holds the epoch before"
        )
    return EpochResult(
        loss=loss,
        lr=rate,
        images_per_second=images / seconds,
        data_wait=waited / seconds,
        positive_similarity=float(similarities.mean()),
        seconds=seconds,
    )
