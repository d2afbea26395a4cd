"""A classifier of the study's images, whose attention gives boxes: the last row of the paper's Table 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.checkpoint import save_checkpoint
from saga_fast.encoder import EncoderConfig
from saga_fast.loaders import Loader
from saga_fast.methods import StepOutput
from saga_fast.methods.supervised import Supervised, SupervisedConfig
from saga_fast.precision import normalized
from saga_fast.train.config import TrainConfig, config_to_dict
from saga_fast.train.epoch import train_epoch
from saga_fast.train.optimizer import build_optimizer
from saga_fast.train.provider import classifier


class Learner(Supervised):
    """The classifier with a loss: the cross-entropy of one view."""

    num_views = 1
    trainable = True

    def __init__(self, config: SupervisedConfig, encoder: EncoderConfig, labels: Tensor) -> None:
        super().__init__(config, encoder)
        self.labels = labels

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:
        """The cross-entropy; the true class's mean probability where a contrastive method has a similarity."""
        loss = F.cross_entropy(self.projector(self.encoder(views[:, 0])), self.labels[index], reduction="none")
        return StepOutput(loss.mean(), (-loss.detach()).exp().mean())


def train_classifier(config: TrainConfig, loader: Loader, path: Path) -> None:
    """Train for the plain phase of ``config`` with its encoder, optimiser, crops and photometrics, and write ``path``.

    Args:
        config: of the plain checkpoint, whose method is left out of it.
        loader: shuffled training images, one random resized crop each.
        path: a checkpoint that ``attention.provider_ckpt`` takes.
    """
    method = SupervisedConfig(num_classes=len(loader.source.classes))
    torch.manual_seed(config.seed)
    model = Learner(method, config.encoder, torch.from_numpy(loader.source.labels))
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for epoch in range(config.plain.epochs):
        train_epoch(
            config, config.plain, model, optimizer, scaler, loader, epoch=epoch, phase_epoch=epoch, progress=False
        )
    written = config_to_dict(replace(config, method=method))
    save_checkpoint(path, {"config": written, "epoch": config.plain.epochs, "model": model.state_dict()})


@torch.no_grad()
def top1(path: Path, loader: Loader, *, channels_last: bool) -> float:
    """The classifier's accuracy on whole images."""
    cpu, hits = torch.device("cpu"), 0
    model = classifier(str(path), cpu, channels_last=channels_last)
    for batch in loader:
        images = normalized(batch.views, model.encoder, cpu, channels_last=channels_last)[:, 0]
        hits += int((model.projector(model.encoder(images)).argmax(1) == batch.label).sum())
    return hits / len(loader.source)
