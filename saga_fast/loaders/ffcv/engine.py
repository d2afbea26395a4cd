"""The ffcv engine: a .beton file in memory, decoded and cropped by compiled code on threads of its own.

FFCV gives the format, its image field and its JPEG library. Its ``Loader`` is left out, for what it would cost here: it
compiles every pipeline anew, fills dictionaries of sets with all records at each opening, sets torch's number of
threads, makes each batch wait for its slowest image, gives out memory that it writes to again, and waits for ever
behind a failed thread. See ``benchmarks/bench_ffcv.py`` for both side by side.

As in the folder engine a task is a run of a batch's images, at most ``prefetch`` batches are under way ahead of the
one in use, and batches come out in order. The windows of a batch are drawn when it is begun, from the plan of its
iteration: a new box table is in use from the next iteration on, at no cost and without compiling.

The file is mapped, as FFCV's ``os_cache=True`` does: what fits stays in the system's page cache, shared by all
processes of a machine. FFCV's other choice, a cache of 8 MiB pages per process, saves reading only where an epoch
visits images in the file's order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from mmap import mmap

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.errors import SagaError
from saga_fast.loaders.batch import Batch, crop_batch, make_batch
from saga_fast.loaders.batch_memory import BatchMemory
from saga_fast.loaders.decode import Pixels
from saga_fast.loaders.ffcv.beton import Beton
from saga_fast.loaders.ffcv.decoder import decode_and_crop, decode_padded
from saga_fast.loaders.loader import Int64, Loader, LoaderOptions, substitutes
from saga_fast.loaders.plan import Plan, view_bytes, view_sides
from saga_fast.loaders.source import Source

Good = npt.NDArray[np.bool_]
Stored = tuple[Int64, Int64, Good, Int64]


class FfcvLoader(Loader):
    """See :func:`saga_fast.loaders.open_loader`.

    Images that have no record, because they could not be decoded when the file was packed, are in ``bad`` from the
    start.
    """

    source: Beton

    def __init__(self, source: Source, plan: Plan, options: LoaderOptions) -> None:
        if not isinstance(source, Beton):
            raise SagaError(f"the ffcv engine reads .beton files, not {source!r}: saga-fast pack makes them")
        super().__init__(source, plan, options)
        for index, reason in source.bad.items():
            if index not in self.bad:
                self.bad.add(index, reason)
        too_large = source.sizes.prod(1) > options.max_pixels
        for index in np.flatnonzero((source.row >= 0) & too_large[source.row]).tolist():
            if index not in self.bad:
                height, width = source.sizes[source.row[index]]
                self.bad.add(index, f"{width} x {height} pixels are more than {options.max_pixels}")
        # Batches under way, the caller's, and the one it takes next.
        self._memory = BatchMemory(keep=options.prefetch + 2)

    def __iter__(self) -> Iterator[Batch]:
        order, size = self.order(), self.options.batch_size
        starts = iter(range(0, len(order), size))
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="saga-fast-ffcv")
        work = _Epoch(self, pool, self._memory)
        ahead: deque[_Pending] = deque()
        try:
            while True:
                while len(ahead) <= self.options.prefetch and (start := next(starts, None)) is not None:
                    ahead.append(work.begin(order[start : start + size].copy()))
                if not ahead:
                    return
                batch = work.finish(ahead.popleft())
                if len(batch.index):
                    yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Images:
    """Records of a batch as compiled code takes them, and their windows (n, V, 4)."""

    def __init__(self, source: Beton, plan: Plan, epoch: int, indices: Int64) -> None:
        rows = source.row[indices]
        self.begins, self.lengths, self.jpeg = source.begins[rows], source.lengths[rows], source.jpeg[rows]
        self.sizes = source.sizes[rows]
        self.windows = np.ascontiguousarray(plan.windows(epoch, indices, self.sizes), np.int32)

    def stored(self, part: slice) -> Stored:
        """What the decoders take of some of them."""
        return self.begins[part], self.lengths[part], self.jpeg[part], self.sizes[part]


class _Pending:
    """A batch under way: its views, or its images padded in parts that the GPU will crop.

    ``images``, and what is done with them, is in the order of ``slots`` of the batch.
    """

    def __init__(self, indices: Int64, slots: Int64, images: _Images) -> None:
        self.indices, self.slots, self.images = indices, slots, images
        self.views: torch.Tensor | None = None
        self.padded: list[tuple[slice, torch.Tensor]] = []
        self.tasks: list[Future[Good]] = []


_Task = Callable[[_Images, slice, Pixels], Good]


class _Epoch:
    """One iteration: its plan, its threads, and batches begun and finished in order by the caller's thread."""

    def __init__(self, loader: FfcvLoader, pool: ThreadPoolExecutor, memory: BatchMemory) -> None:
        self._source, self._plan, self._epoch = loader.source, loader.plan, loader.epoch
        self._options, self._pool, self._memory = loader.options, pool, memory
        self._address = loader.source.address()
        self._sides, self._view_bytes = view_sides(self._plan), view_bytes(self._plan)
        self._scratch = _Scratch(loader.source)
        # As in the folder engine.
        self._task_size = max(1, min(16, -(-self._options.batch_size // (2 * self._options.threads))))

    def begin(self, indices: Int64) -> _Pending:
        """Draw the batch's windows and set threads to work on it."""
        on_gpu = self._options.crop == "gpu"
        slots = np.arange(len(indices))
        if on_gpu:
            slots = np.argsort(_size_classes(self._source.sizes[self._source.row[indices]]), kind="stable")
        pending = _Pending(indices, slots, _Images(self._source, self._plan, self._epoch, indices[slots]))
        if on_gpu:
            for part in _parts(pending.images.sizes):
                height, width = pending.images.sizes[part].max(0).tolist()
                padded = self._tensor((part.stop - part.start, height, width, 3))
                pending.padded.append((part, padded))
                self._submit(pending, self._decode, part, padded)
        else:
            pending.views = self._tensor((len(indices), self._view_bytes))
            self._submit(pending, self._crop, slice(0, len(indices)), pending.views)
        return pending

    def finish(self, pending: _Pending) -> Batch:
        """Wait for the batch."""
        good = np.empty(len(pending.indices), np.bool_)
        good[pending.slots] = np.concatenate([task.result() for task in pending.tasks])
        indices, views = pending.indices, self._crop_padded(pending) if pending.views is None else pending.views
        for slot in np.flatnonzero(~good).tolist():
            self._options.bad.add(int(indices[slot]), f"damaged JPEG in {self._source.root.name}")
        if not good.all() and self._options.shuffle:
            for slot in np.flatnonzero(~good).tolist():
                indices[slot], views[slot] = self._substitute(int(indices[slot]), indices)
        elif not good.all():
            indices, views = indices[good], views[torch.from_numpy(good).to(views.device)]
        return make_batch(views, indices, self._source, self._plan)

    def _submit(self, pending: _Pending, task: _Task, part: slice, target: torch.Tensor) -> None:
        values = target.numpy()
        for start in range(part.start, part.stop, self._task_size):
            run = slice(start, min(start + self._task_size, part.stop))
            place = values[run.start - part.start : run.stop - part.start]
            pending.tasks.append(self._pool.submit(task, pending.images, run, place))

    def _crop(self, images: _Images, run: slice, views: Pixels) -> Good:
        self._source.check_length()
        good = np.empty(len(views), np.bool_)
        stored, scratch = images.stored(run), self._scratch.of_this_thread()
        decode_and_crop(self._address, *stored, images.windows[run], self._sides, scratch, views, good)
        return good

    def _decode(self, images: _Images, run: slice, padded: Pixels) -> Good:
        self._source.check_length()
        good = np.empty(len(padded), np.bool_)
        decode_padded(self._address, *images.stored(run), padded, good)
        return good

    def _crop_padded(self, pending: _Pending) -> torch.Tensor:
        device, windows = self._options.device, torch.from_numpy(pending.images.windows)
        views = torch.empty((len(pending.indices), self._view_bytes), dtype=torch.uint8, device=device)
        for part, padded in pending.padded:
            views[torch.from_numpy(pending.slots[part]).to(device)] = crop_batch(
                padded.to(device, non_blocking=True), windows[part].to(device, non_blocking=True), self._plan
            )
        return views

    def _substitute(self, index: int, taken: Int64) -> tuple[int, torch.Tensor]:
        """Another image for a bad image's place in a training batch, and its views."""
        seed, bad = self._options.seed, self._options.bad
        views = np.empty((1, self._view_bytes), np.uint8)
        for candidate in substitutes(self._source, bad, index, taken, seed=seed, epoch=self._epoch):
            images = _Images(self._source, self._plan, self._epoch, np.array([candidate]))
            if self._crop(images, slice(0, 1), views)[0]:
                return candidate, torch.from_numpy(views[0])
        raise AssertionError("substitutes() raises when it runs out")

    def _tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self._options.device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return self._memory.tensor(shape)


class _Scratch(threading.local):
    """Room to decode one JPEG, one per thread; only what is touched takes memory, until the threads end."""

    def __init__(self, source: Beton) -> None:
        self._memory = mmap(-1, max(source.scratch_bytes, 1))

    def of_this_thread(self) -> Pixels:
        return np.frombuffer(self._memory, np.uint8)


def _size_classes(sizes: Int64) -> Int64:
    """Images whose sides have the same powers of two above them are of a class: padded to the largest of it, they take
    four times their memory at most, and one that is larger than the others does not make all of them as large."""
    powers: Int64 = np.ceil(np.log2(sizes)).astype(np.int64)
    return powers[:, 0] * 64 + powers[:, 1]


def _parts(sizes: Int64) -> list[slice]:
    """Runs of images of a class."""
    borders = np.flatnonzero(np.diff(_size_classes(sizes))) + 1
    ends = [0, *borders.tolist(), len(sizes)]
    return [slice(begin, end) for begin, end in pairwise(ends)]
