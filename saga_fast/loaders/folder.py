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
from saga_fast.kernels.philox import SUBSTITUTE, draw
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.decode import DecodeError, Pixels, decode_image
from saga_fast.loaders.image_folder import ImageFolder
from saga_fast.loaders.order import epoch_order
from saga_fast.loaders.plan import Plan, check_plan

Int64 = npt.NDArray[np.int64]


class FolderLoader:
    """See :func:`saga_fast.loaders.open_loader`, which documents the arguments."""

    def __init__(
        self,
        source: ImageFolder,
        plan: Plan,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        bad: BadImages,
        threads: int,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        check_plan(plan, source)
        self.source, self.plan, self.bad = source, plan, bad
        self.epoch = 0
        self._batch_size, self._shuffle, self._drop_last, self._seed = batch_size, shuffle, drop_last, seed
        self._threads, self._prefetch, self._pin_memory = threads, prefetch, pin_memory
        self._memory = _BatchMemory(keep=prefetch + 2)  # those under way, the caller's, and the one it takes next
        # Short tasks let the threads finish a batch together; 16 images amortise a task's 30 us.
        self._task_size = max(1, min(16, -(-batch_size // (2 * threads))))

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order and windows the next iteration takes."""
        self.epoch = epoch

    def set_plan(self, plan: Plan) -> None:
        """The plan that the next iteration takes: a new box table, say, which must be this data set's."""
        check_plan(plan, self.source)
        self.plan = plan

    def __len__(self) -> int:
        images = len(self.source) - len(self.bad)
        return images // self._batch_size if self._drop_last else -(-images // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = epoch_order(
            len(self.source), seed=self._seed, epoch=self.epoch, shuffle=self._shuffle, without=self.bad.indices
        )
        last = len(self) * self._batch_size
        starts = iter(range(0, last, self._batch_size))
        work = _Epoch(self.source, self.plan, self.epoch, self._seed, self.bad)
        ahead: deque[_Pending] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="saga-fast-folder")
        try:
            while True:
                while len(ahead) <= self._prefetch and (start := next(starts, None)) is not None:
                    ahead.append(self._submit(pool, work, order[start : start + self._batch_size]))
                if not ahead:
                    return
                batch = self._finish(work, ahead.popleft())
                if len(batch.index):
                    yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, work: _Epoch, indices: Int64) -> _Pending:
        shape = (len(indices), work.plan.num_views, work.plan.size, work.plan.size, 3)
        views = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=True) if self._pin_memory else self._memory.tensor(shape)
        )
        target = views.numpy()
        tasks = []
        for start in range(0, len(indices), self._task_size):
            part = slice(start, start + self._task_size)
            tasks.append(pool.submit(work.fill, indices[part], target[part]))
        return _Pending(indices.copy(), views, tasks)

    def _finish(self, work: _Epoch, pending: _Pending) -> Batch:
        good = np.concatenate([task.result() for task in pending.tasks])
        indices, views = pending.indices, pending.views
        if not good.all() and self._shuffle:
            for slot in np.flatnonzero(~good):
                indices[slot] = work.substitute(int(indices[slot]), indices, views.numpy()[slot : slot + 1])
        elif not good.all():
            indices, views = indices[good], views[torch.from_numpy(good)]
        return Batch(views, torch.from_numpy(indices), torch.from_numpy(work.source.labels[indices]))


class _BatchMemory:
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


class _Epoch:
    """One epoch's plan, as the threads work it off."""

    def __init__(self, source: ImageFolder, plan: Plan, epoch: int, seed: int, bad: BadImages) -> None:
        self.source, self.plan = source, plan
        self._epoch, self._seed, self._bad = epoch, seed, bad

    def fill(self, indices: Int64, views: Pixels) -> npt.NDArray[np.bool_]:
        """Read, decode and crop images into ``views`` (n, V, S, S, 3); which of them could be decoded, (n,) bool."""
        images = [self._read(int(index)) for index in indices]
        good = np.array([image is not None for image in images])
        sizes = np.array([image.shape[:2] if image is not None else (1, 1) for image in images], np.int64)
        windows = self.plan.windows(self._epoch, indices, sizes)
        for n, image in enumerate(images):
            if image is not None:
                crop_resize_image(image, windows[n], views[n])
        return good

    def substitute(self, index: int, taken: Int64, views: Pixels) -> int:
        """Fill a bad image's place in a training batch with another image, drawn by (seed, epoch, index).

        Batches keep their size, which queues, compiled graphs and gathered losses rely on. An image that is in the
        batch already is taken only when 100 draws gave no other. What other threads have found bad by now plays no
        part: a listed image would fail to decode just the same.
        """
        for attempt in range(1000):
            u = draw(self._seed, self._epoch, np.array([index]), purpose=SUBSTITUTE, block=attempt)[0, 0]
            candidate = int(u * len(self.source))
            repeated = candidate in taken and attempt < 100
            if not repeated and candidate not in self._bad and self.fill(np.array([candidate]), views)[0]:
                return candidate
        raise RuntimeError(f"found no substitute for image {index} in 1000 draws")

    def _read(self, index: int) -> Pixels | None:
        path = self.source.root / self.source.paths[index]
        try:
            return decode_image(path.read_bytes())
        except (DecodeError, OSError) as error:
            self._bad.add(index, str(error))
            return None
