"""The predicted time of steps on this machine, from rates that are measured here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from saga_fast.config import TrainConfig
from saga_fast.evaluate.features import FrozenModel
from saga_fast.loaders import Batch, WholePlan, open_loader, open_source
from saga_fast.models.modes import eval_mode, place_model
from saga_fast.profile.measure import batches, measure
from saga_fast.profile.train import profile_train
from saga_fast.reproduce.step import Step
from saga_fast.runtime.device import choose_device
from saga_fast.train.run import build_model


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Images per second of one process, and the numbers of images."""

    train: float
    forward: float
    """Loading whole images and computing their features: attention passes, kNN and probes."""
    num_train: int
    num_val: int


def measure_rates(config: TrainConfig, *, seconds: float) -> Rates:
    """The rates of a config with its images on its device.

    Args:
        config: of a training with validation images.
        seconds: approximate time of each of four measurements.

    Raises:
        SagaError: images that cannot be read.
    """
    rows = {row["name"]: row for row in profile_train(config, seconds=seconds)}
    source, val = (
        open_source(config.data.engine, path, classes=config.data.classes, cache=config.data.cache)
        for path in (config.data.train, config.data.val or config.data.train)
    )
    device = choose_device(config.device)
    model = build_model(config, source)
    frozen = FrozenModel(
        model=place_model(model, device, channels_last=config.channels_last),
        precision=config.precision,
        channels_last=config.channels_last,
    )
    options = config.loader_options(device)
    loader = open_loader(config.data.engine, source, WholePlan(size=config.crop.size), options)

    def forward(batch: Batch) -> None:
        for features in frozen.unit_features(batch).values():
            features.cpu()

    with eval_mode(model):
        measured = measure(batches(loader, forward), seconds=seconds, warmup=2)
    return Rates(
        train=rows["train"]["images_per_second"],
        forward=measured.images_per_second,
        num_train=len(source),
        num_val=len(val),
    )


def hours(steps: Iterable[Step], rates: Mapping[str, Rates]) -> float:
    """The hours that steps take in one process.

    Args:
        steps: the steps that are left.
        rates: of each method, by its name.
    """
    return sum(_seconds(step, rates[step.config.method.name]) for step in steps) / 3600


def _seconds(step: Step, rates: Rates) -> float:
    return _training_seconds(step, rates) if step.is_training else step.passes * rates.num_train / rates.forward


def _training_seconds(step: Step, rates: Rates) -> float:
    config, left = step.config, step.epochs_left()
    passes = 0.0
    if config.evaluate and left:
        passes += (left / config.evaluate.every + 1) * (rates.num_train + rates.num_val)
    if config.attention and config.saga.epochs:
        passes += min(left, config.saga.epochs) / config.attention.period * rates.num_train
    return left * rates.num_train / rates.train + passes / rates.forward
