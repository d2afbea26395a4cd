"""The contract of every engine: a loader of an epoch's batches, and its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.decode import MAX_PIXELS
from saga_fast.loaders.order import EpochOrder, epoch_order
from saga_fast.loaders.plan import Plan, check_plan
from saga_fast.loaders.source import Source

Int64 = npt.NDArray[np.int64]
Place = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """The options of a loader besides its data set and its plan; :func:`saga_fast.loaders.open_loader` checks them."""

    batch_size: int = 256
    """Images per batch, all processes' parts together."""
    shuffle: bool = False
    """A new order each epoch, a function of (seed, epoch); False: ascending."""
    drop_last: bool = False
    """Leave out a last batch that is not full."""
    seed: int = 0
    """Key of the order."""
    threads: int | None = None
    """Decoding threads; None: the processor cores that this process may use."""
    prefetch: int = 2
    """Batches decoded ahead of the one in use: this bounds the memory."""
    device: torch.device | str = "cpu"
    """Device that uses the batches. For a GPU, batches on the CPU are page-locked, so that copying them does not block,
    and views that are cropped on the GPU stay there."""
    decode: Place = "auto"
    """Where images are decoded: ``cpu``, ``gpu``, or ``auto``, the engine's default for ``device``."""
    crop: Place = "auto"
    """Where views are cropped, likewise."""
    max_pixels: int = MAX_PIXELS
    """Larger images count as undecodable: no memory is allocated for the size that a small file claims."""
    rank: int = 0
    """This process's number among ``world_size``: it yields the rank-th of world_size equal parts of each batch."""
    world_size: int = 1

    @property
    def local_batch_size(self) -> int:
        """Images of this process's part of a batch."""
        return self.batch_size // self.world_size


@dataclass(frozen=True, kw_only=True)
class ResolvedOptions(LoaderOptions):
    """Checked options of a running loader: threads, device, decode and crop are decided."""

    threads: int
    device: torch.device


class Loader(ABC):
    """Batches of an epoch: equal ones for any engine, batch size, number of threads or resume.

    Attributes:
        source: the data set.
        plan: the plan of the next iteration.
        bad: images that cannot be decoded.
        epoch: the epoch of the next iteration.
        start_batch: the first batch of the next iteration.
        batches: the numbers of the batches of the next iterations, or None for all of them.
        images: the indices of the next iterations, or None for all of them.
        options: the options.
    """

    def __init__(self, source: Source, plan: Plan, options: ResolvedOptions, bad: BadImages) -> None:
        check_plan(plan, source)
        self.source, self.plan, self.options, self.bad = source, plan, options, bad
        self.epoch, self.start_batch = 0, 0
        self.batches: Int64 | None = None
        self.images: Int64 | None = None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Set the epoch of the next iteration, which decides order and windows, and its first batch.

        (epoch, batch) is the whole position of a loader: the batches from ``start_batch`` on are those of an iteration
        from the epoch's beginning, if ``bad`` holds the same images as at that beginning.

        Raises:
            ValueError: ``start_batch`` is negative.
        """
        if start_batch < 0:
            raise ValueError(f"start_batch must not be negative, got {start_batch}")
        self.epoch, self.start_batch = epoch, start_batch

    def set_batches(self, numbers: Int64 | None) -> None:
        """Yield only these batches of each epoch from the next iteration on, (n,) int64 ascending; None: all of them.

        Each batch is that of a whole epoch, so that processes which share an epoch's batches compute, image by image,
        what one process computes.

        Raises:
            ValueError: numbers that are negative or not ascending.
        """
        if numbers is not None and len(numbers) and (numbers[0] < 0 or (np.diff(numbers) <= 0).any()):
            raise ValueError(f"batch numbers must be ascending from 0 up, got {numbers}")
        self.batches = numbers

    def set_images(self, indices: Int64 | None) -> None:
        """Yield only these images from the next iteration on, (n,) int64, as if there were no more; None: all of them.

        Raises:
            ValueError: an index twice, or one outside of the data set.
        """
        if indices is not None:
            used, limit = np.unique(indices), len(self.source)
            if len(used) != len(indices) or (used < 0).any() or (used >= limit).any():
                raise ValueError(f"images must be different indices below {limit}, got {indices}")
        self.images = indices

    def set_plan(self, plan: Plan) -> None:
        """Set the plan of the next iteration, for example with a new box table.

        Raises:
            SagaError: the plan's table belongs to another data set.
        """
        check_plan(plan, self.source)
        self.plan = plan

    def __len__(self) -> int:
        """Batches per epoch, from its beginning."""
        images, size = self._num_images(), self.global_batch_size
        return images // size if self.options.drop_last else -(-images // size)

    @property
    def global_batch_size(self) -> int:
        """Images of a batch, all processes' parts together."""
        return self.options.batch_size

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches; iteration may be stopped at any point."""

    def index_batches(self) -> Generator[Int64]:
        """The images that this process visits in the next iteration: (B,) int64 for each batch, without bad images.

        Each process takes the rank-th of ``world_size`` equal parts of each batch. Of a last batch that is not full,
        the first processes take full parts, and the last ones may get no image.
        """
        options, size = self.options, self.global_batch_size
        part = size // options.world_size
        order = self.epoch_order()
        numbers = range(self.start_batch, len(self)) if self.batches is None else self.batches[self.batches < len(self)]
        try:
            for number in numbers:
                first = int(number) * size + options.rank * part
                if first < len(order):
                    yield order.at(np.arange(first, min(first + part, len(order))))
        finally:
            order.close()

    def epoch_order(self) -> EpochOrder:
        """The images that all processes visit in an epoch, in order: also those of a last batch that is dropped."""
        return epoch_order(
            len(self.source),
            seed=self.options.seed,
            epoch=self.epoch,
            shuffle=self.options.shuffle,
            without=self.bad.indices,
            images=self.images,
        )

    def _num_images(self) -> int:
        """The number of images that are not known to be bad."""
        if self.images is None:
            return len(self.source) - len(self.bad)
        return len(self.images) - int(np.isin(self.images, self.bad.indices).sum())
