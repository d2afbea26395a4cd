"""The linear probe: a linear classifier on the pooled features of a frozen encoder in eval mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel
from saga_fast.evaluate.knn import align_labels, check_finite
from saga_fast.evaluate.probe_file import ProbeFile
from saga_fast.evaluate.protocols import ProbeConfig
from saga_fast.kernels import PhotometricRecipe, sample_photometrics
from saga_fast.loaders import Batch, Loader
from saga_fast.loaders.bad_images import FOUND_EARLIER
from saga_fast.loaders.order import epoch_order
from saga_fast.optim import learning_rate

log = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""epoch -> (features (B, D), labels (B,)) of its batches, on the device."""


@dataclass(frozen=True, kw_only=True)
class ProbeLoaders:
    """The images of a linear probe.

    Attributes:
        train: shuffled training crops in batches of the protocol's size; labelled.
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
    """
    frozen.model.eval()
    train, val, cached = loaders.train, loaders.val, loaders.cached
    _check_labels(train, val)
    facts = {**asdict(config), "cached": cached is not None, "seed": seed, **(identity or {})}
    file = None if out is None else ProbeFile(out / "probe.pt", facts)
    state = _start(config, _dim(frozen, val), len(train.source.classes), seed, frozen.device)
    if file is not None and (saved := file.read(state.classifier.state_dict())) is not None:
        state.load(saved)
        train.bad.update(dict.fromkeys(saved["bad"], FOUND_EARLIER))  # an epoch's order leaves them out
    total = config.phase.epochs
    if state.epoch >= total:
        return state.history
    if cached is not None:
        batches = _cached_batches(frozen, cached, config.batch_size, seed, progress)
        tests = _cached_tests(frozen, val, train, progress)
    else:
        batches, tests = _augmented_batches(frozen, train, config.flip, seed), _tests(frozen, val, train)
    with tqdm(total=total, initial=state.epoch, desc="probe", unit="epoch", disable=None if progress else True) as bar:
        while state.epoch < total:
            steps = -(-(len(train.source) - len(train.bad)) // config.batch_size)
            loss = _train_epoch(state, config, batches, steps)
            state.epoch += 1
            if state.epoch % every == 0 or state.epoch == total:
                state.history.append(_test(state, tests, loss))
                log.info("probe epoch %d: top-1 %.1f %%", state.epoch, 100 * state.history[-1].top1)
            if file is not None:
                file.save(state.content() | {"bad": train.bad.indices.tolist()})
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
    return state.history


def _check_labels(train: Loader, val: Loader) -> None:
    for source in (train.source, val.source):
        if not source.classes:
            raise SagaError(f"the linear probe needs labelled images, one folder per class: {source.root} has none")
    align_labels(torch.from_numpy(val.source.labels), val.source, train.source)


def _features(frozen: FrozenModel, batch: Batch, photometrics: Tensor | None = None) -> Tensor:
    """Pooled features of all views and branches, concatenated and not normalised: (B, D) float32.

    Raises:
        SagaError: features that are not finite.
    """
    views = frozen.features(batch, photometrics=photometrics)
    features = torch.cat([h for branches in views for h in branches], 1)
    check_finite(features)
    return features


def _dim(frozen: FrozenModel, loader: Loader) -> int:
    """The length D of an image's features."""
    side, views = loader.plan.size, loader.plan.num_views
    blank = torch.zeros(1, views, side, side, 3, dtype=torch.uint8)
    return _features(frozen, Batch(blank, torch.zeros(1).long(), torch.zeros(1).long())).shape[1]


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


def _train_epoch(state: _State, config: ProbeConfig, batches: Batches, steps: int) -> float:
    scale = config.peak_lr / config.phase.lr
    losses = []
    for step, (features, labels) in enumerate(batches(state.epoch)):
        rate = scale * learning_rate(config.phase, state.epoch + step / steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(state.classifier(features), labels)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        losses.append(loss.detach())
    mean = float(torch.stack(losses).mean())
    if not torch.isfinite(torch.tensor(mean)):
        raise SagaError(f"the probe's loss is not finite in epoch {state.epoch + 1}: lower --lr ({config.peak_lr:g})")
    return mean


def _test(state: _State, tests: Batches, loss: float) -> Accuracy:
    first = fifth = images = 0
    classes = state.classifier.out_features
    for features, labels in tests(0):
        with torch.no_grad():
            ranked = state.classifier(features).topk(min(5, classes), dim=1).indices == labels[:, None]
        first, fifth, images = first + int(ranked[:, 0].sum()), fifth + int(ranked.any(1).sum()), images + len(labels)
    top5 = fifth / images if classes > 5 else None
    return Accuracy(epoch=state.epoch, top1=first / images, top5=top5, images=images, loss=loss)


def _augmented_batches(frozen: FrozenModel, train: Loader, flip: float, seed: int) -> Batches:
    recipe = PhotometricRecipe(flip=flip)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        train.set_epoch(epoch)
        for batch in train:
            photometrics = sample_photometrics(recipe, seed, epoch, batch.index, batch.views.shape[1])
            yield _features(frozen, batch, photometrics), batch.label.to(frozen.device)

    return batches


def _tests(frozen: FrozenModel, val: Loader, train: Loader) -> Batches:
    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in val:
            labels = align_labels(batch.label, val.source, train.source)
            yield _features(frozen, batch), labels.to(frozen.device)

    return batches


def _all_features(frozen: FrozenModel, loader: Loader, progress: bool) -> tuple[Tensor, Tensor]:
    rows, labels = [], []
    with tqdm(total=len(loader.source), desc="features", unit="img", disable=None if progress else True) as bar:
        for batch in loader:
            rows.append(_features(frozen, batch))
            labels.append(batch.label)
            bar.update(len(batch.label))
    return torch.cat(rows), torch.cat(labels)


def _cached_batches(frozen: FrozenModel, loader: Loader, size: int, seed: int, progress: bool) -> Batches:
    features, stored = _all_features(frozen, loader, progress)
    labels, none = stored.to(frozen.device), np.empty(0, np.int64)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(labels), seed=seed, epoch=epoch, shuffle=True, without=none)
        shuffled = torch.from_numpy(order).to(frozen.device)
        for begin in range(0, len(order), size):
            rows = shuffled[begin : begin + size]
            yield features[rows], labels[rows]

    return batches


def _cached_tests(frozen: FrozenModel, val: Loader, train: Loader, progress: bool) -> Batches:
    features, stored = _all_features(frozen, val, progress)
    labels = align_labels(stored, val.source, train.source).to(frozen.device)
    return lambda _: iter([(features, labels)])
