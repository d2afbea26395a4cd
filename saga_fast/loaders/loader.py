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
    """See :func:`saga_fast.loaders.open_loader`, which documents and checks them."""

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


class Loader(ABC):
    """Batches of an epoch: the same ones whatever the engine, batch size, thread count or resume.

    Attributes:
        source: the data set.
        plan: what the next iteration takes.
        bad: images that cannot be decoded.
        epoch: what the next iteration takes.
        start_batch: the first batch that the next iteration takes.
    """

    def __init__(self, source: Source, plan: Plan, options: LoaderOptions) -> None:
        check_plan(plan, source)
        self.source, self.plan, self.bad, self.epoch = source, plan, options.bad, 0
        self.start_batch = 0
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

    def set_plan(self, plan: Plan) -> None:
        """The plan that the next iteration takes: a new box table, say. SagaError if it is another data set's."""
        check_plan(plan, self.source)
        self.plan = plan

    def __len__(self) -> int:
        """Batches per epoch, from its beginning."""
        images, size = len(self.source) - len(self.bad), self.options.batch_size
        return images // size if self.options.drop_last else -(-images // size)

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches; iteration may be stopped at any point."""

    def order(self) -> Int64:
        """The indices that the next iteration visits in turn, without known bad images and what is dropped."""
        options = self.options
        order = epoch_order(
            len(self.source),
            seed=options.seed,
            epoch=self.epoch,
            shuffle=options.shuffle,
            without=self.bad.indices,
        )
        return order[self.start_batch * options.batch_size : len(self) * options.batch_size]


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
