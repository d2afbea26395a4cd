"""The linear probe: a linear classifier on the pooled features of a frozen encoder in eval mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.evaluate.knn import align_labels
from saga_fast.evaluate.probe_file import read_probe, save_probe
from saga_fast.evaluate.protocols import ProbeConfig
from saga_fast.kernels import PhotometricRecipe, sample_photometrics
from saga_fast.loaders import Batch, Loader
from saga_fast.loaders.order import epoch_order
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast, normalized
from saga_fast.train.optimizer import learning_rate

log = logging.getLogger(__name__)

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""epoch -> (features (B, D), labels (B,)) of its batches, on the device."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The encoder as the probe sees it."""

    model: Method
    precision: Precision = "fp32"
    channels_last: bool = False

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.parameters()).device

    def features(self, batch: Batch, photometrics: Tensor | None = None) -> Tensor:
        """Pooled features, not normalised, of all views and branches side by side: (B, V * dim) float32."""
        views = normalized(
            batch.views, self.model.encoder, self.device, photometrics=photometrics, channels_last=self.channels_last
        )
        with torch.no_grad(), autocast(self.device, self.precision):
            parts = [b.encoder(b.images) for images in views.unbind(1) for b in self.model.branches(images)]
        return torch.cat([part.float() for part in parts], 1)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Of ``images`` validation images; ``top5`` is None where there are not more than 5 classes."""

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


def linear_probe(
    frozen: Frozen,
    train: Loader,
    val: Loader,
    config: ProbeConfig,
    *,
    cached: Loader | None = None,
    seed: int = 0,
    every: int = 10,
    out: Path | None = None,
    identity: dict[str, Any] | None = None,
    progress: bool = False,
) -> list[Accuracy]:
    """Train the classifier and test it.

    The model is put into eval mode and stays in it. A probe with ``out`` goes on from ``out/probe.pt``, which is
    written after every epoch: one that was killed and run again ends like one that was not.

    Args:
        frozen: the encoder.
        train: shuffled training crops in batches of ``config.batch_size``; labelled.
        val: the test crop of the validation images, whose classes are among the training images'.
        config: the protocol.
        cached: the training images once more, in order and without draws, with the same list of bad images: their
            features are computed once and stand for ``train``, which is then not read. Fast, and an estimate: no
            augmentation.
        seed: of the classifier's initialisation, the order and the flips.
        every: epochs between tests; the last epoch is always tested.
        out: folder for ``probe.pt``, or None to keep nothing.
        identity: what tells this probe from another in the same folder, such as the checkpoint's hash.
        progress: show progress bars.

    Returns:
        The tests, the last one last.

    Raises:
        SagaError: unlabelled images, a class that the training images lack, a loss that is not finite, or another
            probe's ``probe.pt``.
    """
    device = frozen.device
    frozen.model.eval()
    _check_labels(train, val)
    own = {**asdict(config), "cached": cached is not None, "seed": seed, **(identity or {})}
    state = _start(config, _dim(frozen, val), len(train.source.classes), seed, device)
    if out is not None and (kept := read_probe(out / "probe.pt", own)) is not None:
        state.classifier.load_state_dict(kept["classifier"])
        state.optimizer.load_state_dict(kept["optimizer"])
        state.epoch, state.history = kept["epoch"], [Accuracy(**row) for row in kept["history"]]
        for index in kept["bad"]:  # the order of an epoch leaves out what earlier ones found
            train.bad.add(index, "found by an earlier run")
    total = config.phase.epochs
    if state.epoch >= total:
        return state.history
    batches = (
        _cached_batches(frozen, cached, config.batch_size, seed, progress)
        if cached is not None
        else _augmented_batches(frozen, train, config.flip, seed)
    )
    tests = _cached_tests(frozen, val, train, progress) if cached is not None else _tests(frozen, val, train)
    with tqdm(total=total, initial=state.epoch, desc="probe", unit="epoch", disable=None if progress else True) as bar:
        while state.epoch < total:
            steps = -(-(len(train.source) - len(train.bad)) // config.batch_size)
            loss = _train_epoch(state, config, batches, steps)
            state.epoch += 1
            if state.epoch % every == 0 or state.epoch == total:
                state.history.append(_test(state, tests, loss))
                log.info("probe epoch %d: top-1 %.1f %%", state.epoch, 100 * state.history[-1].top1)
            if out is not None:
                save_probe(
                    out / "probe.pt",
                    own,
                    {
                        "classifier": state.classifier.state_dict(),
                        "optimizer": state.optimizer.state_dict(),
                        "epoch": state.epoch,
                        "bad": train.bad.indices.tolist(),
                        "history": [asdict(row) for row in state.history],
                    },
                )
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
    return state.history


def _check_labels(train: Loader, val: Loader) -> None:
    for source in (train.source, val.source):
        if not source.classes:
            raise SagaError(f"the linear probe needs labelled images, one folder per class: {source.root} has none")
    align_labels(torch.from_numpy(val.source.labels), val.source, train.source)


def _dim(frozen: Frozen, loader: Loader) -> int:
    """Length of an image's features, from a blank one: branches and views are side by side."""
    side, views = loader.plan.size, loader.plan.num_views
    blank = torch.zeros(1, views, side, side, 3, dtype=torch.uint8)
    return frozen.features(Batch(blank, torch.zeros(1).long(), torch.zeros(1).long())).shape[1]


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


def _augmented_batches(frozen: Frozen, train: Loader, flip: float, seed: int) -> Batches:
    recipe = PhotometricRecipe(flip=flip)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        train.set_epoch(epoch)
        for batch in train:
            photometrics = sample_photometrics(recipe, seed, epoch, batch.index, batch.views.shape[1])
            yield frozen.features(batch, photometrics), batch.label.to(frozen.device)

    return batches


def _tests(frozen: Frozen, val: Loader, train: Loader) -> Batches:
    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in val:
            labels = align_labels(batch.label, val.source, train.source)
            yield frozen.features(batch), labels.to(frozen.device)

    return batches


def _all_features(frozen: Frozen, loader: Loader, progress: bool) -> tuple[Tensor, Tensor]:
    rows, labels = [], []
    with tqdm(total=len(loader.source), desc="features", unit="img", disable=None if progress else True) as bar:
        for batch in loader:
            rows.append(frozen.features(batch))
            labels.append(batch.label)
            bar.update(len(batch.label))
    return torch.cat(rows), torch.cat(labels)


def _cached_batches(frozen: Frozen, loader: Loader, size: int, seed: int, progress: bool) -> Batches:
    features, stored = _all_features(frozen, loader, progress)
    labels, none = stored.to(frozen.device), np.empty(0, np.int64)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(labels), seed=seed, epoch=epoch, shuffle=True, without=none)
        shuffled = torch.from_numpy(order).to(frozen.device)
        for begin in range(0, len(order), size):
            rows = shuffled[begin : begin + size]
            yield features[rows], labels[rows]

    return batches


def _cached_tests(frozen: Frozen, val: Loader, train: Loader, progress: bool) -> Batches:
    features, stored = _all_features(frozen, val, progress)
    labels = align_labels(stored, val.source, train.source).to(frozen.device)
    return lambda _: iter([(features, labels)])
