"""The linear probe: a linear classifier on the pooled features of a frozen encoder in eval mode."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel
from saga_fast.evaluate.knn import align_labels
from saga_fast.evaluate.probe_batches import (
    Batches,
    augmented_batches,
    cached_batches,
    cached_val_batches,
    feature_dim,
    val_batches,
)
from saga_fast.evaluate.probe_file import ProbeFile
from saga_fast.evaluate.protocols import ProbeConfig
from saga_fast.loaders import Loader
from saga_fast.loaders.bad_images import FOUND_EARLIER
from saga_fast.optim import learning_rate
from saga_fast.runtime.distributed import check_same, data_parallel, is_main, mean, total, world_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeLoaders:
    """The images of a linear probe.

    Attributes:
        train: shuffled training crops in batches of the protocol's size; labelled. Of several processes each has its
            part of the batches: ``LoaderOptions.rank`` and ``world_size``.
        val: the test crop of the validation images, whose classes are among the training images'.
        cached: the training images in order, without augmentation and with the same list of bad images, or None. Their
            features are computed once and used in place of ``train``, which is then not read: fast, and an estimate.
    """

    train: Loader
    val: Loader
    cached: Loader | None = None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Accuracy on ``images`` validation images; ``top5`` is None if there are 5 classes or fewer."""

    epoch: int
    top1: float
    top5: float | None
    images: int
    loss: float
    """Mean training loss of that epoch."""


@dataclass
class _State:
    classifier: nn.Linear
    optimizer: torch.optim.SGD
    epoch: int = 0
    history: list[Accuracy] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """The state for a probe file."""
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": [asdict(row) for row in self.history],
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Restore what :meth:`content` returned."""
        self.classifier.load_state_dict(content["classifier"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.history = content["epoch"], [Accuracy(**row) for row in content["history"]]


def linear_probe(
    frozen: FrozenModel,
    loaders: ProbeLoaders,
    config: ProbeConfig,
    *,
    seed: int = 0,
    every: int = 10,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Accuracy]:
    """The test accuracies of a linear classifier that is trained on frozen features, the last one last.

    The model is put into eval mode and stays in it. A probe with ``out`` resumes from ``out/probe.pt``, which is
    written after every epoch: a killed probe that is run again ends bit-identical to one that was not killed.

    Processes that torchrun started together share the images, rank 0 writes ``probe.pt``, and each returns the
    accuracies: to rounding those of one process, also if a probe is resumed with another number of processes.

    Args:
        frozen: the encoder.
        loaders: the images.
        config: the protocol.
        seed: of the classifier's initialisation, the order and the flips.
        every: epochs between tests; the last epoch is always tested.
        out: folder for ``probe.pt``, or None to keep nothing.
        identity: tells this probe from another in the same folder, for example by the checkpoint's hash.
        progress: show progress bars.

    Raises:
        SagaError: unlabelled images, a class that the training images lack, a loss that is not finite, or another
            probe's ``probe.pt``.
        ValueError: ``loaders.train`` has another batch size than the protocol, or is for another number of processes.
    """
    frozen.model.eval()
    train, epochs = loaders.train, config.phase.epochs
    _check_labels(train, loaders.val)
    _check_parts(train, config)
    facts = {**asdict(config), "cached": loaders.cached is not None, "seed": seed, **(identity or {})}
    file = None if out is None else ProbeFile(out / "probe.pt", facts)
    dim = feature_dim(frozen, loaders.val)
    state = _start(config, dim, len(train.source.classes), seed, frozen.device)
    _restore(state, file, train)
    if state.epoch >= epochs:
        return state.history
    batches, tests = _batches(frozen, loaders, config, dim, seed, progress)
    network = data_parallel(state.classifier, frozen.device)
    disable = None if progress and is_main() else True
    with tqdm(total=epochs, initial=state.epoch, desc="probe", unit="epoch", disable=disable) as bar:
        while state.epoch < epochs:
            loss = _train_epoch(state, network, config, batches, len(train.source) - len(train.bad))
            train.bad.share()
            state.epoch += 1
            if state.epoch % every == 0 or state.epoch == epochs:
                state.history.append(_test(state, tests, loss))
            if file is not None and is_main():
                file.save(state.content() | {"bad": train.bad.indices.tolist()})
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
    return state.history


def _check_labels(train: Loader, val: Loader) -> None:
    for source in (train.source, val.source):
        if not source.classes:
            raise SagaError(f"the linear probe needs labelled images, one folder per class: {source.root} has none")
    align_labels(torch.from_numpy(val.source.labels), val.source, train.source)


def _check_parts(train: Loader, config: ProbeConfig) -> None:
    options = train.options
    if (options.batch_size, options.world_size) != (config.batch_size, world_size()):
        raise ValueError(
            f"loaders.train must have batch_size {config.batch_size} and world_size {world_size()},"
            f" got {options.batch_size} and {options.world_size}"
        )


def _start(config: ProbeConfig, dim: int, classes: int, seed: int, device: torch.device) -> _State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = nn.Linear(dim, classes)
        if config.init_std is not None:
            nn.init.normal_(classifier.weight, std=config.init_std)
            nn.init.zeros_(classifier.bias)
    classifier.to(device)
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=config.peak_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
    return _State(classifier, optimizer)


def _restore(state: _State, file: ProbeFile | None, train: Loader) -> None:
    """Go on from the probe file, if there is one.

    Raises:
        SagaError: the ranks have read different ones.
    """
    if file is not None and (saved := file.read(state.classifier.state_dict())) is not None:
        state.load(saved)
        train.bad.update(dict.fromkeys(saved["bad"], FOUND_EARLIER))  # an epoch's order leaves them out
    check_same({"probe.pt": f"epoch {state.epoch}"})  # a network file system may show an older one for some seconds


def _batches(
    frozen: FrozenModel, loaders: ProbeLoaders, config: ProbeConfig, dim: int, seed: int, progress: bool
) -> tuple[Batches, Batches]:
    """The features and labels of the training and of the validation images."""
    train, val = loaders.train, loaders.val
    if loaders.cached is None:
        return augmented_batches(frozen, train, dim, flip=config.flip, seed=seed), val_batches(frozen, val, train)
    return (
        cached_batches(frozen, loaders.cached, config.batch_size, seed=seed, progress=progress),
        cached_val_batches(frozen, val, train, progress=progress),
    )


def _train_epoch(state: _State, network: nn.Module, config: ProbeConfig, batches: Batches, images: int) -> float:
    """Train ``network``, the classifier that averages gradients over ranks, on ``images``; the mean of the losses."""
    scale, size = config.peak_lr / config.phase.lr, config.batch_size
    steps = -(-images // size)
    losses = []
    for step, (features, labels) in enumerate(batches(state.epoch)):
        rate = scale * learning_rate(config.phase, state.epoch + step / steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        # The mean of the ranks' losses is the mean over the batch's images, of which they may have different numbers.
        count = min(size, images - step * size)
        loss = F.cross_entropy(network(features), labels, reduction="sum") / (count / world_size())
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        losses.append(loss.detach())
    result = float(mean(torch.stack(losses)).mean())
    if not math.isfinite(result):
        raise SagaError(f"the probe's loss is not finite in epoch {state.epoch + 1}: lower --lr ({config.peak_lr:g})")
    return result


def _test(state: _State, tests: Batches, loss: float) -> Accuracy:
    first = fifth = images = 0
    classes = state.classifier.out_features
    for features, labels in tests(0):
        with torch.no_grad():
            ranked = state.classifier(features).topk(min(5, classes), dim=1).indices == labels[:, None]
        first, fifth, images = first + int(ranked[:, 0].sum()), fifth + int(ranked.any(1).sum()), images + len(labels)
    first, fifth, images = total(torch.tensor([first, fifth, images])).tolist()
    top5 = fifth / images if classes > 5 else None
    log.info("probe epoch %d: top-1 %.1f %%", state.epoch, 100 * first / images)
    return Accuracy(epoch=state.epoch, top1=first / images, top5=top5, images=images, loss=loss)
