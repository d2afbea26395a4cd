"""The folder engine: threads that read, decode and crop, straight from a folder of image files.

Threads, not processes: decoding and cropping release the GIL, and the boxes and the plan are shared as they are. A
task is a run of a batch's images; a thread reads, decodes and crops them into the batch's memory. At most
``prefetch`` batches are under way ahead of the one being used, so memory stays bounded, and batches come out in order.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.decode import DecodeError, Pixels, decode_image
from saga_fast.loaders.loader import Int64, Loader, LoaderOptions, substitutes
from saga_fast.loaders.plan import Plan
from saga_fast.loaders.source import Source


class FolderLoader(Loader):
    """See :func:`saga_fast.loaders.open_loader`."""

    def __init__(self, source: Source, plan: Plan, options: LoaderOptions) -> None:
        super().__init__(source, plan, options)
        # Batches under way, the caller's, and the one it takes next.
        self._memory = BatchMemory(keep=options.prefetch + 2)
        # Short tasks let the threads finish a batch together; 16 images amortise a task's 30 us.
        self._task_size = max(1, min(16, -(-options.batch_size // (2 * options.threads))))

    def __iter__(self) -> Iterator[Batch]:
        order, size = self.order(), self.options.batch_size
        starts = iter(range(0, len(order), size))
        work = EpochCrops(self.source, self.plan, self.epoch, self.options.seed, self.bad)
        ahead: deque[_Pending] = deque()
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="saga-fast-folder")
        try:
            while True:
                while len(ahead) <= self.options.prefetch and (start := next(starts, None)) is not None:
                    ahead.append(self._submit(pool, work, order[start : start + size]))
                if not ahead:
                    return
                batch = self._finish(work, ahead.popleft())
                if len(batch.index):
                    yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, work: EpochCrops, indices: Int64) -> _Pending:
        shape = (len(indices), work.plan.num_views, work.plan.size, work.plan.size, 3)
        pinned = self.options.device.type == "cuda"
        views = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pinned else self._memory.tensor(shape)
        target = views.numpy()
        tasks = []
        for start in range(0, len(indices), self._task_size):
            part = slice(start, start + self._task_size)
            tasks.append(pool.submit(work.fill, indices[part], target[part]))
        return _Pending(indices.copy(), views, tasks)

    def _finish(self, work: EpochCrops, pending: _Pending) -> Batch:
        good = np.concatenate([task.result() for task in pending.tasks])
        return work.batch(pending.indices, pending.views, good, substitute=self.options.shuffle)


class BatchMemory:
    """Memory for batches: mappings of their own, used again once no tensor lies on them any more.

    From malloc, 19 MB batches between decoded images fragment the heap: over 36 epochs of 820 images resident memory
    grows from 754 to 946 MB; with mappings it stays below 750. A fresh mapping per batch would cost 6 % more CPU time
    in page faults.
    """

    def __init__(self, keep: int) -> None:
        self._free: deque[mmap] = deque(maxlen=keep)  # what a caller piled up beyond it goes back to the system

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """uint8, not initialised."""
        size = math.prod(shape)
        memory = self._free.pop() if self._free else mmap(-1, size)
        if len(memory) < size:  # that of a short last batch, or of a plan with smaller views
            memory = mmap(-1, size)
        values = np.frombuffer(memory, np.uint8, count=size)
        weakref.finalize(values, self._free.append, memory).atexit = False
        return torch.from_numpy(values.reshape(shape))


class _Pending:
    """A batch under way."""

    def __init__(self, indices: Int64, views: torch.Tensor, tasks: list[Future[npt.NDArray[np.bool_]]]) -> None:
        self.indices, self.views, self.tasks = indices, views, tasks


class EpochCrops:
    """One epoch's plan, as threads work it off image by image."""

    def __init__(self, source: Source, plan: Plan, epoch: int, seed: int, bad: BadImages) -> None:
        self.source, self.plan = source, plan
        self._epoch, self._seed, self._bad = epoch, seed, bad

    def windows(self, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """See :meth:`saga_fast.loaders.plan.Plan.windows`."""
        return self.plan.windows(self._epoch, indices, sizes)

    def fill(self, indices: Int64, views: Pixels) -> npt.NDArray[np.bool_]:
        """Read, decode and crop images into ``views`` (n, V, S, S, 3); which of them could be decoded, (n,) bool."""
        images = [self._read(int(index)) for index in indices]
        good = np.array([image is not None for image in images])
        sizes = np.array([image.shape[:2] if image is not None else (1, 1) for image in images], np.int64)
        windows = self.windows(indices, sizes)
        for n, image in enumerate(images):
            if image is not None:
                crop_resize_image(image, windows[n], views[n])
        return good

    def batch(self, indices: Int64, views: torch.Tensor, good: npt.NDArray[np.bool_], *, substitute: bool) -> Batch:
        """The batch of ``views``, in which images that are not ``good`` are substituted or left out."""
        if not good.all() and substitute:
            spare = np.empty((1, *views.shape[1:]), np.uint8)
            for slot in np.flatnonzero(~good):
                indices[slot] = self._substitute(int(indices[slot]), indices, spare)
                views[slot] = torch.from_numpy(spare[0])
        elif not good.all():
            indices, views = indices[good], views[torch.from_numpy(good)]
        return Batch(views, torch.from_numpy(indices), torch.from_numpy(self.source.labels[indices]))

    def _substitute(self, index: int, taken: Int64, views: Pixels) -> int:
        """Fill a bad image's place in a training batch with another image; which one."""
        candidates = substitutes(self.source, self._bad, index, taken, seed=self._seed, epoch=self._epoch)
        return next(candidate for candidate in candidates if self.fill(np.array([candidate]), views)[0])

    def _read(self, index: int) -> Pixels | None:
        try:
            return decode_image(self.source.read(index))
        except (DecodeError, OSError) as error:
            self._bad.add(index, str(error))
            return None
