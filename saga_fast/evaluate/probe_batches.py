"""The features that a linear probe is trained and tested on: computed in each epoch, or once (cached)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saga_fast.evaluate.features import FrozenModel, gather_in_order, local_batches
from saga_fast.evaluate.knn import align_labels, check_finite
from saga_fast.kernels import PhotometricRecipe, sample_photometrics
from saga_fast.loaders import Batch, Loader
from saga_fast.loaders.order import epoch_order
from saga_fast.runtime.distributed import is_main, rank, world_size

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""epoch -> (features (B, D), labels (B,)) of this rank's images, on the device: in training one pair per step, which is
empty where the rank has no image of a last batch."""


def pooled_features(frozen: FrozenModel, batch: Batch, photometrics: Tensor | None = None) -> Tensor:
    """Pooled features of all views and branches, concatenated and not normalised: (B, D) float32.

    Raises:
        SagaError: features that are not finite.
    """
    views = frozen.features(batch, photometrics=photometrics)
    features = torch.cat([h for branches in views for h in branches], 1)
    check_finite(features)
    return features


def feature_dim(frozen: FrozenModel, loader: Loader) -> int:
    """The length D of an image's features."""
    side, views = loader.plan.size, loader.plan.num_views
    blank = torch.zeros(1, views, side, side, 3, dtype=torch.uint8)
    return pooled_features(frozen, Batch(blank, torch.zeros(1).long(), torch.zeros(1).long())).shape[1]


def augmented_batches(frozen: FrozenModel, train: Loader, dim: int, *, flip: float, seed: int) -> Batches:
    """The training batches of an epoch, cropped and flipped anew; ``dim`` is the features' length."""
    recipe = PhotometricRecipe(flip=flip)
    nothing = torch.zeros(0, dim, device=frozen.device), torch.zeros(0, device=frozen.device).long()

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        train.set_epoch(epoch)
        steps, done = len(train), 0  # counted before the pass, which may find bad images
        for batch in train:
            photometrics = sample_photometrics(recipe, seed, epoch, batch.index, batch.views.shape[1])
            yield pooled_features(frozen, batch, photometrics), batch.label.to(frozen.device)
            done += 1
        if done < steps:
            yield nothing

    return batches


def val_batches(frozen: FrozenModel, val: Loader, train: Loader) -> Batches:
    """The validation batches, with labels as positions in the training images' classes."""

    def batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in local_batches(val):
            labels = align_labels(batch.label, val.source, train.source)
            yield pooled_features(frozen, batch), labels.to(frozen.device)

    return batches


def cached_batches(frozen: FrozenModel, loader: Loader, size: int, *, seed: int, progress: bool) -> Batches:
    """The training batches of an epoch, ``size`` images of all ranks, from features that are computed now."""
    index, rows, stored = _pass(frozen, loader, progress)
    features = gather_in_order(index, rows).to(frozen.device)
    labels, none = gather_in_order(index, stored).to(frozen.device), np.empty(0, np.int64)
    part = size // world_size()

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = epoch_order(len(labels), seed=seed, epoch=epoch, shuffle=True, without=none).indices()
        shuffled = torch.from_numpy(order).to(frozen.device)
        for begin in range(0, len(order), size):
            first = begin + rank() * part  # the parts of Loader.index_batches
            rows = shuffled[first : first + part]
            yield features[rows], labels[rows]

    return batches


def cached_val_batches(frozen: FrozenModel, val: Loader, train: Loader, *, progress: bool) -> Batches:
    """The validation images in one batch, from features that are computed now: each rank keeps its own."""
    _, rows, stored = _pass(frozen, val, progress)
    if not rows:
        return lambda _: iter(())
    labels = align_labels(torch.cat(stored), val.source, train.source)
    batch = torch.cat(rows).to(frozen.device), labels.to(frozen.device)
    return lambda _: iter([batch])


def _pass(frozen: FrozenModel, loader: Loader, progress: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Indices, features and labels of this rank's batches, on the CPU."""
    index, rows, labels = [], [], []
    disable = None if progress and is_main() else True
    with tqdm(total=len(loader.source), desc="features", unit="img", disable=disable) as bar:
        for batch in local_batches(loader):
            index.append(batch.index)
            rows.append(pooled_features(frozen, batch).cpu())
            labels.append(batch.label)
            bar.update(world_size() * len(batch.label))
    return index, rows, labels
