"""A classifier of the study's images, whose attention gives boxes: the last row of the paper's Table 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from saga_fast.checkpoint import save_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import config_to_dict
from saga_fast.evaluate.features import FrozenModel
from saga_fast.loaders import Loader
from saga_fast.methods import build_method
from saga_fast.methods.supervised import SupervisedConfig
from saga_fast.optim import build_optimizer
from saga_fast.train.epoch import EpochPosition, train_epoch
from saga_fast.train.provider import classifier
from saga_fast.train.step import Training


def train_classifier(config: TrainConfig, loader: Loader, path: Path) -> None:
    """Train for the plain phase of ``config`` with its encoder, optimiser, crops and photometrics, and write ``path``.

    Args:
        config: of the plain checkpoint; its method is not used.
        loader: shuffled training images, one random resized crop each.
        path: a checkpoint for ``attention.provider_ckpt``.
    """
    method = SupervisedConfig(num_classes=len(loader.source.classes))
    torch.manual_seed(config.seed)
    model = build_method(method, config.encoder, labels=torch.from_numpy(loader.source.labels))
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    training = Training(
        config=config,
        model=model,
        network=model,
        optimizer=build_optimizer(config.optimizer, model),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    for epoch in range(config.plain.epochs):
        train_epoch(training, loader, EpochPosition(epoch=epoch, phase=config.plain, phase_epoch=epoch))
    written = config_to_dict(replace(config, method=method))
    save_checkpoint(path, {"config": written, "epoch": config.plain.epochs, "model": model.state_dict()})


def top1(path: Path, loader: Loader, *, channels_last: bool) -> float:
    """The classifier's accuracy on whole images."""
    model, hits = classifier(str(path), torch.device("cpu"), channels_last=channels_last), 0
    frozen = FrozenModel(model=model.eval(), channels_last=channels_last)
    for batch in loader:
        ((logits,),) = frozen.features(batch, "projector")
        hits += int((logits.argmax(1) == batch.label).sum())
    return hits / len(loader.source)
