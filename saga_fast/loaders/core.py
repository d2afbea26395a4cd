"""The core of the engines: batches in progress ahead of the one in use, and substitutes for undecodable images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.errors import SagaError
from saga_fast.kernels.philox import SUBSTITUTE, draw
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch, make_batch
from saga_fast.loaders.batch_memory import BatchMemory
from saga_fast.loaders.device_images import ImageStream
from saga_fast.loaders.loader import Int64, Loader, ResolvedOptions
from saga_fast.loaders.plan import Plan, view_bytes, view_sides
from saga_fast.loaders.read_ahead import ReadAhead
from saga_fast.loaders.source import Source
from saga_fast.runtime.device import to_device
from saga_fast.runtime.threads import end_pool

PendingBatch = Callable[[], Batch]
"""A batch in progress: waits for it and returns it."""

TASK_SIZE = 16
"""Images of a task at most: they amortise the 30 us that starting a task takes."""


class Epoch:
    """One iteration of a loader: its plan, and what its batches are made with.

    Attributes:
        ahead: reads in progress.
        source: the images, read from ``ahead``.
        sides: (V,) int64, side of each view, pixels.
        view_bytes: bytes of all views of an image.
    """

    def __init__(self, loader: Loader, memory: BatchMemory) -> None:
        self.ahead = ReadAhead(loader.source)
        self.source: Source = self.ahead.source
        self.plan: Plan = loader.plan
        self.options: ResolvedOptions = loader.options
        self.bad: BadImages = loader.bad
        self.number = loader.epoch
        self.sides, self.view_bytes = view_sides(self.plan), view_bytes(self.plan)
        self._memory = memory

    def windows(self, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """The windows of images, see :meth:`saga_fast.loaders.plan.Plan.windows`."""
        return self.plan.windows(self.number, indices, sizes)

    def tasks(self, count: int) -> list[slice]:
        """``count`` images cut into tasks for the threads: short ones, so that the threads finish a batch together."""
        size = max(1, min(TASK_SIZE, -(-self.options.local_batch_size // (2 * self.options.threads))))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def new_tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A uint8 tensor on the CPU, not initialised; page-locked if the batches go to a GPU."""
        if self.options.device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return self._memory.tensor(shape)

    def batch(
        self,
        indices: Int64,
        views: torch.Tensor,
        good: npt.NDArray[np.bool_],
        views_of: Callable[[int], torch.Tensor | None],
    ) -> Batch:
        """The batch of these images: undecodable ones are substituted in training, and left out otherwise.

        Args:
            indices: (B,) int64; changed in place.
            views: (B, view_bytes) uint8; the rows of substituted images are changed in place.
            good: (B,) bool, False for undecodable images.
            views_of: the views (view_bytes,) of one image, None if it cannot be decoded.
        """
        if not good.all() and self.options.shuffle:
            for slot in np.flatnonzero(~good).tolist():
                indices[slot], views[slot] = self._substitute(int(indices[slot]), indices, views_of)
        elif not good.all():
            indices, views = (
                indices[good],
                views.index_select(0, to_device(torch.from_numpy(np.flatnonzero(good)), views.device)),
            )
        return make_batch(views, indices, self.source, self.plan)

    def _substitute(
        self, index: int, taken: Int64, views_of: Callable[[int], torch.Tensor | None]
    ) -> tuple[int, torch.Tensor]:
        """The index and views of the image that takes a bad image's place."""
        for candidate in substitutes(
            len(self.source), self.bad, index, taken, seed=self.options.seed, epoch=self.number
        ):
            views = views_of(candidate)
            if views is not None:
                return candidate, views
        raise AssertionError("substitutes raises when it has no more")


class PrefetchLoader(Loader, ABC):
    """A loader whose threads work on at most ``prefetch`` batches ahead of the one in use; batches come in order.

    A task is a part of a batch's images. The memory is bounded by the number of batches in progress.
    """

    def __init__(self, source: Source, plan: Plan, options: ResolvedOptions, bad: BadImages) -> None:
        super().__init__(source, plan, options, bad)
        # Batches in progress, the caller's, and the one that it takes next.
        self.memory = BatchMemory(keep=options.prefetch + 2)

    @abstractmethod
    def start_epoch(self, epoch: Epoch, pool: ThreadPoolExecutor) -> Callable[[Int64], PendingBatch]:
        """A function that submits the tasks of a batch, whose indices (B,) int64 it is given, for one iteration.

        Batches are waited for in the order in which they were started, in the caller's thread.
        """

    def __iter__(self) -> Iterator[Batch]:
        batches = self.index_batches()
        ahead: deque[PendingBatch] = deque()
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="saga-fast-decode")
        epoch = Epoch(self, self.memory)
        start_batch = self.start_epoch(epoch, pool)
        try:
            while True:
                while len(ahead) <= self.options.prefetch and (indices := next(batches, None)) is not None:
                    epoch.ahead.start(indices)
                    ahead.append(start_batch(indices))
                if not ahead:
                    return
                batch = ahead.popleft()()
                if len(batch.index):
                    yield batch
        finally:
            epoch.ahead.stop()  # before the threads end, which may wait for it
            batches.close()
            end_pool(pool)
            if self.options.crop == "gpu":
                ImageStream(self.options.device).wait()


def substitutes(num_images: int, bad: BadImages, index: int, taken: Int64, *, seed: int, epoch: int) -> Iterator[int]:
    """Candidates for a bad image's place in a training batch, drawn by (seed, epoch, index).

    Batches keep their size, which queues, compiled graphs and gathered losses rely on. Images of the batch (``taken``)
    are offered only after 100 draws. Images that other threads list as bad meanwhile make no difference: decoding them
    would fail too.

    Raises:
        SagaError: after 1000 draws.
    """
    for attempt in range(1000):
        u = draw(seed, epoch, np.array([index]), purpose=SUBSTITUTE, block=attempt)[0, 0]
        candidate = int(u * num_images)
        repeated = candidate in taken and attempt < 100
        if not repeated and candidate not in bad:
            yield candidate
    raise SagaError(
        f"found no image to replace the undecodable image {index} in 1000 draws, {len(bad)} of {num_images} are bad:"
        " remove them, or mend the files"
    )
