"""``profile train``: training compared with its two limits, the loader alone and the step alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from saga_fast.config import TrainConfig
from saga_fast.loaders import Batch, Loader, open_loader, open_source
from saga_fast.methods import Method
from saga_fast.models.modes import place_model
from saga_fast.optim import build_optimizer
from saga_fast.profile.figures import Row
from saga_fast.profile.measure import batches, measure
from saga_fast.runtime.device import choose_device
from saga_fast.train.epoch import EpochPosition, EpochResult, train_epoch
from saga_fast.train.plan import crop_plan
from saga_fast.train.run import build_model
from saga_fast.train.step import Training


class _FixedSteps(Loader):
    """An epoch of ``steps`` batches of another loader.

    They are successive batches, or with ``repeat`` its first batch again and again.
    """

    def __init__(self, loader: Loader, steps: int, *, repeat: bool) -> None:
        super().__init__(loader.source, loader.plan, loader.options, loader.bad)
        self._loader, self._steps, self._repeat = loader, steps, repeat

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        if self._repeat:
            return itertools.repeat(next(iter(self._loader)), self._steps)
        epochs = (self._inner_epoch(number) for number in itertools.count(self.epoch))
        return itertools.islice(itertools.chain.from_iterable(epochs), self._steps)

    def _inner_epoch(self, number: int) -> Loader:
        self._loader.set_epoch(number)
        return self._loader


def profile_train(config: TrainConfig, *, seconds: float) -> Iterator[Row]:
    """The rows ``loader``, ``step`` and ``train`` of a run's plain phase, without evaluation.

    ``loader`` only loads batches, ``step`` repeats one batch in memory, ``train`` does both. Data and device are the
    config's. Nothing is written.

    Args:
        config: the run's config.
        seconds: approximate time per row.
    """
    device = choose_device(config.device)
    data = config.data
    source = open_source(data.engine, data.train, classes=data.classes, cache=data.cache)
    model = build_model(config, source)
    place_model(model, device, channels_last=config.channels_last)
    options = replace(config.loader_options(device), shuffle=True, drop_last=True)
    loader = open_loader(config.data.engine, source, crop_plan(config, model), options)
    loading = measure(batches(loader), seconds=seconds, warmup=config.data.prefetch + 2)
    yield loading.row("loader", limit=loading.images_per_second, against="loader")
    warmup = _train(config, model, _FixedSteps(loader, 2, repeat=True))
    steps = max(2, round(seconds * warmup.images_per_second / config.batch_size))
    step = _train(config, model, _FixedSteps(loader, steps, repeat=True))
    yield _row("step", step, limit=step.images_per_second, against="step")
    train = _train(config, model, _FixedSteps(loader, steps, repeat=False))
    limit = min(loading.images_per_second, step.images_per_second)
    slower = "loader" if limit == loading.images_per_second else "step"
    yield _row("train", train, limit=limit, against=slower, data_wait=train.data_wait)


def _train(config: TrainConfig, model: Method, loader: Loader) -> EpochResult:
    training = Training(
        config=config,
        model=model,
        network=model,
        optimizer=build_optimizer(config.optimizer, model),
        scaler=torch.amp.GradScaler(next(model.parameters()).device.type, enabled=config.precision == "fp16"),
    )
    phase = replace(config.plain, epochs=1, warmup_epochs=0)
    return train_epoch(training, loader, EpochPosition(epoch=0, phase=phase, phase_epoch=0))


def _row(name: str, result: EpochResult, *, limit: float, against: str, **facts: float) -> Row:
    rate = {"name": name, "images_per_second": result.images_per_second, "limit": limit, "against": against}
    return rate | {"ratio": result.images_per_second / limit} | facts
