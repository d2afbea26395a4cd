"""The ffcv engine: a .beton file in memory, decoded and cropped by compiled code on our own threads.

FFCV provides the format, its image field and its JPEG library. Its ``Loader`` is not used, for its costs here: it
compiles each pipeline anew, builds a dictionary of all records at each opening, sets torch's number of threads, makes
each batch wait for its slowest image, reuses the memory of batches that it has returned, and waits for ever behind a
failed thread. ``benchmarks/bench_ffcv.py`` compares both.

The windows of a batch are drawn when it is started, from the plan of its iteration: a new box table is in use from the
next iteration on, without compiling anything.

The file is mapped, as with FFCV's ``os_cache=True``: what fits stays in the system's page cache, shared by all
processes of a machine. FFCV's other choice, a cache of 8 MiB pages per process, saves reads only if an epoch visits the
images in the file's order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from mmap import mmap

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.errors import SagaError
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.core import Epoch, PendingBatch, PrefetchLoader
from saga_fast.loaders.decode import Pixels
from saga_fast.loaders.ffcv.beton import Beton
from saga_fast.loaders.ffcv.decoder import Stored, decode_and_crop, decode_padded
from saga_fast.loaders.loader import Int64, ResolvedOptions
from saga_fast.loaders.plan import Plan
from saga_fast.loaders.source import Source

Good = npt.NDArray[np.bool_]


class FfcvLoader(PrefetchLoader):
    """See :func:`saga_fast.loaders.open_loader`.

    Images without a record, because they could not be decoded when the file was packed, are in ``bad`` from the start.
    """

    source: Beton

    def __init__(self, source: Source, plan: Plan, options: ResolvedOptions, bad: BadImages) -> None:
        if not isinstance(source, Beton):
            raise SagaError(f"the ffcv engine reads .beton files, not {source!r}: saga-fast pack makes them")
        super().__init__(source, plan, options, bad)
        self.bad.update(source.bad)
        too_large = source.sizes.prod(1) > options.max_pixels
        for index in np.flatnonzero((source.row >= 0) & too_large[source.row]).tolist():
            if index not in self.bad:
                height, width = source.sizes[source.row[index]]
                self.bad.add(index, f"{width} x {height} pixels are more than {options.max_pixels}")

    def start_epoch(self, pool: ThreadPoolExecutor) -> Callable[[Int64], PendingBatch]:
        """See :meth:`PrefetchLoader.start_epoch`."""
        return _Crops(self, pool).start


class _Images:
    """The records of a batch in the form that compiled code takes, and their windows (n, V, 4)."""

    def __init__(self, source: Beton, epoch: Epoch, indices: Int64) -> None:
        rows = source.row[indices]
        self._stored = Stored(source.begins[rows], source.lengths[rows], source.jpeg[rows], source.sizes[rows])
        self.sizes = self._stored.sizes
        self.windows = np.ascontiguousarray(epoch.windows(indices, self.sizes), np.int32)

    def stored(self, part: slice) -> Stored:
        """The records of a part of the images."""
        begins, lengths, jpeg, sizes = self._stored
        return Stored(begins[part], lengths[part], jpeg[part], sizes[part])


_Task = Callable[[_Images, slice, Pixels], Good]


class _Crops:
    """Batches of one iteration, cropped on the CPU, or decoded into padded batches that the GPU crops."""

    def __init__(self, loader: FfcvLoader, pool: ThreadPoolExecutor) -> None:
        self._source, self._epoch, self._pool = loader.source, Epoch(loader, loader.memory), pool
        self._address = loader.source.address()
        self._scratch = _Scratch(loader.source)

    def start(self, indices: Int64) -> PendingBatch:
        """Draw the batch's windows and submit its tasks."""
        return self._start_padded(indices) if self._epoch.options.crop == "gpu" else self._start_crops(indices)

    def _start_crops(self, indices: Int64) -> PendingBatch:
        images = _Images(self._source, self._epoch, indices)
        views = self._epoch.new_tensor((len(indices), self._epoch.view_bytes))
        tasks = self._submit(self._crop, images, slice(0, len(indices)), views)
        return partial(self._finish_crops, indices, views, tasks)

    def _finish_crops(self, indices: Int64, views: torch.Tensor, tasks: list[Future[Good]]) -> Batch:
        good = np.concatenate([task.result() for task in tasks])
        return self._batch(indices, views, good)

    def _start_padded(self, indices: Int64) -> PendingBatch:
        """Decode the images, sorted by size class, into padded batches."""
        slots = np.argsort(_size_classes(self._source.sizes[self._source.row[indices]]), kind="stable")
        images = _Images(self._source, self._epoch, indices[slots])
        padded: list[tuple[slice, torch.Tensor]] = []
        tasks: list[Future[Good]] = []
        for part in _class_runs(images.sizes):
            height, width = images.sizes[part].max(0).tolist()
            target = self._epoch.new_tensor((part.stop - part.start, height, width, 3))
            padded.append((part, target))
            tasks += self._submit(self._decode, images, part, target)
        return partial(self._finish_padded, indices, slots, images.windows, padded, tasks)

    def _finish_padded(
        self,
        indices: Int64,
        slots: Int64,
        windows: npt.NDArray[np.int32],
        padded: list[tuple[slice, torch.Tensor]],
        tasks: list[Future[Good]],
    ) -> Batch:
        good = np.empty(len(indices), np.bool_)
        good[slots] = np.concatenate([task.result() for task in tasks])
        device = self._epoch.options.device
        views = torch.empty((len(indices), self._epoch.view_bytes), dtype=torch.uint8, device=device)
        windows_on_device = torch.from_numpy(windows).to(device, non_blocking=True)
        for part, images in padded:
            views[torch.from_numpy(slots[part]).to(device)] = crop_batch(
                images.to(device, non_blocking=True), windows_on_device[part], self._epoch.plan
            )
        return self._batch(indices, views, good)

    def _batch(self, indices: Int64, views: torch.Tensor, good: Good) -> Batch:
        for index in indices[~good].tolist():
            self._epoch.bad.add(index, f"damaged JPEG in {self._source.root.name}")
        return self._epoch.batch(indices, views, good, self._views_of)

    def _views_of(self, index: int) -> torch.Tensor | None:
        views = np.empty((1, self._epoch.view_bytes), np.uint8)
        images = _Images(self._source, self._epoch, np.array([index]))
        return torch.from_numpy(views[0]) if self._crop(images, slice(0, 1), views)[0] else None

    def _submit(self, task: _Task, images: _Images, part: slice, target: torch.Tensor) -> list[Future[Good]]:
        values, tasks = target.numpy(), []
        for rows in self._epoch.tasks(part.stop - part.start):
            run = slice(part.start + rows.start, part.start + rows.stop)
            tasks.append(self._pool.submit(task, images, run, values[rows]))
        return tasks

    def _crop(self, images: _Images, run: slice, views: Pixels) -> Good:
        self._source.check_length()
        good = np.empty(len(views), np.bool_)
        stored, scratch = images.stored(run), self._scratch.of_this_thread()
        decode_and_crop(self._address, stored, images.windows[run], self._epoch.sides, scratch, views, good)
        return good

    def _decode(self, images: _Images, run: slice, padded: Pixels) -> Good:
        self._source.check_length()
        good = np.empty(len(padded), np.bool_)
        decode_padded(self._address, images.stored(run), padded, good)
        return good


class _Scratch(threading.local):
    """Memory to decode one JPEG, one mapping per thread; only touched pages take memory, until the threads end."""

    def __init__(self, source: Beton) -> None:
        self._memory = mmap(-1, max(source.scratch_bytes, 1))

    def of_this_thread(self) -> Pixels:
        return np.frombuffer(self._memory, np.uint8)


def _size_classes(sizes: Int64) -> Int64:
    """The class of each image, by the next powers of two of its sides.

    Padded to the largest of their class, images take four times their memory at most, and a single large image does not
    enlarge the padded memory of all images.
    """
    powers: Int64 = np.ceil(np.log2(sizes)).astype(np.int64)
    return powers[:, 0] * 64 + powers[:, 1]


def _class_runs(sizes: Int64) -> list[slice]:
    """The runs of images of one class, in sizes (n, 2) sorted by class."""
    borders = np.flatnonzero(np.diff(_size_classes(sizes))) + 1
    ends = [0, *borders.tolist(), len(sizes)]
    return [slice(begin, end) for begin, end in pairwise(ends)]
