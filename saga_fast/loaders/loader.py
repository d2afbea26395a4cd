"""The contract that every engine keeps, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.kernels.philox import SUBSTITUTE, draw
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.order import epoch_order
from saga_fast.loaders.plan import Plan, check_plan
from saga_fast.loaders.source import Source

Int64 = npt.NDArray[np.int64]
Place = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """See :func:`saga_fast.loaders.open_loader`, which documents and checks them.

    ``batch_size`` is what this process takes of a batch: the ``rank``-th of ``world_size`` equal parts.
    """

    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    bad: BadImages
    threads: int
    prefetch: int
    device: torch.device
    decode: Place
    crop: Place
    max_pixels: int
    rank: int = 0
    world_size: int = 1


class Loader(ABC):
    """Batches of an epoch: the same ones whatever the engine, batch size, thread count or resume.

    Attributes:
        source: the data set.
        plan: what the next iteration takes.
        bad: images that cannot be decoded.
        epoch: what the next iteration takes.
        start_batch: the first batch that the next iteration takes.
        batches: the numbers of the batches that the next iterations take, or None for all of them.
        images: the indices that the next iterations take, or None for all of them.
    """

    def __init__(self, source: Source, plan: Plan, options: LoaderOptions) -> None:
        check_plan(plan, source)
        self.source, self.plan, self.bad, self.epoch = source, plan, options.bad, 0
        self.start_batch = 0
        self.batches: Int64 | None = None
        self.images: Int64 | None = None
        self.options = options

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The epoch whose order and windows the next iteration takes, and the first of its batches that it yields.

        (epoch, batch) is the whole position of a loader: the batches from ``start_batch`` on are those that an
        iteration from the epoch's beginning yields there, if ``bad`` holds what it held at that beginning.

        Raises:
            ValueError: ``start_batch`` is negative.
        """
        if start_batch < 0:
            raise ValueError(f"start_batch must not be negative, got {start_batch}")
        self.epoch, self.start_batch = epoch, start_batch

    def set_batches(self, numbers: Int64 | None) -> None:
        """Of the batches of an epoch only these, (n,) int64 ascending, from the next iteration on; None: all of them.

        Each is what it is in a whole epoch, so that processes which share an epoch's batches among them compute, image
        by image, what one process computes.

        Raises:
            ValueError: numbers that are negative or not ascending.
        """
        if numbers is not None and len(numbers) and (numbers[0] < 0 or (np.diff(numbers) <= 0).any()):
            raise ValueError(f"batch numbers must be ascending from 0 up, got {numbers}")
        self.batches = numbers

    def set_images(self, indices: Int64 | None) -> None:
        """From the next iteration on these images alone, (n,) int64, as if there were no others; None: all of them.

        Raises:
            ValueError: an index twice, or one outside of the data set.
        """
        if indices is not None and len(np.intersect1d(indices, np.arange(len(self.source)))) != len(indices):
            raise ValueError(f"images must be different indices below {len(self.source)}, got {indices}")
        self.images = indices

    def set_plan(self, plan: Plan) -> None:
        """The plan that the next iteration takes: a new box table, say. SagaError if it is another data set's."""
        check_plan(plan, self.source)
        self.plan = plan

    def __len__(self) -> int:
        """Batches per epoch, from its beginning."""
        images, size = len(self.source) - len(self._left_out()), self.global_batch_size
        return images // size if self.options.drop_last else -(-images // size)

    @property
    def global_batch_size(self) -> int:
        """Images of a batch, all processes' parts together."""
        return self.options.batch_size * self.options.world_size

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches; iteration may be stopped at any point."""

    def order(self) -> Int64:
        """The indices that the next iteration visits in turn in this process, without known bad images and what is
        dropped."""
        options = self.options
        order = epoch_order(
            len(self.source),
            seed=options.seed,
            epoch=self.epoch,
            shuffle=options.shuffle,
            without=self._left_out(),
        )
        size = self.global_batch_size
        order = order[: len(self) * size]
        if self.batches is not None:
            numbers = self.batches[self.batches < len(self)]
            places = (numbers[:, None] * size + np.arange(size)).ravel()
            order = order[places[places < len(order)]]  # the last batch may not be full
        else:
            order = order[self.start_batch * size :]
        return rank_order(order, size, options.rank, options.world_size)

    def _left_out(self) -> Int64:
        """Indices that are known to be bad, or are not among ``images``."""
        if self.images is None:
            return self.bad.indices
        return np.union1d(np.setdiff1d(np.arange(len(self.source)), self.images), self.bad.indices)


def rank_order(order: Int64, batch_size: int, rank: int, world_size: int) -> Int64:
    """What one of ``world_size`` processes takes of batches one after the other: the ``rank``-th part of each.

    Of a last batch that is not full, the first processes take their parts in full and the last ones may get nothing.
    """
    if world_size == 1:
        return order
    full, part = len(order) // batch_size * batch_size, batch_size // world_size
    whole = order[:full].reshape(-1, world_size, part)[:, rank].ravel()
    return np.concatenate([whole, order[full:][rank * part : (rank + 1) * part]])


def substitutes(source: Source, bad: BadImages, index: int, taken: Int64, *, seed: int, epoch: int) -> Iterator[int]:
    """Candidates for a bad image's place in a training batch, drawn by (seed, epoch, index).

    Batches keep their size, which queues, compiled graphs and gathered losses rely on. An image that is in the batch
    already (``taken``) is offered only when 100 draws gave no other. What other threads have found bad by now plays no
    part: a listed image would fail to decode just the same.

    Raises:
        RuntimeError: after 1000 draws.
    """
    for attempt in range(1000):
        u = draw(seed, epoch, np.array([index]), purpose=SUBSTITUTE, block=attempt)[0, 0]
        candidate = int(u * len(source))
        repeated = candidate in taken and attempt < 100
        if not repeated and candidate not in bad:
            yield candidate
    raise RuntimeError(f"found no substitute for image {index} in 1000 draws")
