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
from mmap import mmap

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.errors import SagaError
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.core import Epoch, PendingBatch, PrefetchLoader
from saga_fast.loaders.decode import Pixels
from saga_fast.loaders.device_images import DeviceImages, DevicePlanes, ImageStream, slots_of
from saga_fast.loaders.ffcv.beton import Beton
from saga_fast.loaders.ffcv.decoder import JPEG, Stored, decode_and_crop, decode_whole
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

    def start_epoch(self, epoch: Epoch, pool: ThreadPoolExecutor) -> Callable[[Int64], PendingBatch]:
        """See :meth:`PrefetchLoader.start_epoch`."""
        return _Crops(self.source, epoch, pool).start


class _Images:
    """The records of a batch in the form that compiled code takes, and their windows (n, V, 4)."""

    def __init__(self, source: Beton, epoch: Epoch, indices: Int64) -> None:
        rows = source.row[indices]
        self._stored = Stored(source.begins[rows], source.lengths[rows], source.modes[rows], source.sizes[rows])
        self.sizes = self._stored.sizes
        self.windows = np.ascontiguousarray(epoch.windows(indices, self.sizes), np.int32)

    def stored(self, part: slice) -> Stored:
        """The records of a part of the images."""
        begins, lengths, modes, sizes = self._stored
        return Stored(begins[part], lengths[part], modes[part], sizes[part])


class _Crops:
    """Batches of one iteration, cropped on the CPU, or decoded whole and cropped on the GPU."""

    def __init__(self, source: Beton, epoch: Epoch, pool: ThreadPoolExecutor) -> None:
        self._source, self._epoch, self._pool = source, epoch, pool
        self._address = source.address()
        self._scratch = _Scratch(source)
        self._stream = ImageStream(epoch.options.device)

    def start(self, indices: Int64) -> PendingBatch:
        """Draw the batch's windows and submit its tasks."""
        return self._start_whole(indices) if self._epoch.options.crop == "gpu" else self._start_crops(indices)

    def _start_crops(self, indices: Int64) -> PendingBatch:
        images = _Images(self._source, self._epoch, indices)
        views = self._epoch.new_tensor((len(indices), self._epoch.view_bytes))
        target, parts = views.numpy(), self._epoch.tasks(len(indices))
        tasks = [self._pool.submit(self._crop, images, part, target[part]) for part in parts]
        return partial(self._finish_crops, indices, views, tasks)

    def _finish_crops(self, indices: Int64, views: torch.Tensor, tasks: list[Future[Good]]) -> Batch:
        good = np.concatenate([task.result() for task in tasks])
        return self._batch(indices, views, good)

    def _start_whole(self, indices: Int64) -> PendingBatch:
        """Decode the images whole; the threads also upload them, planes as they are stored."""
        images = _Images(self._source, self._epoch, indices)
        tasks = [self._pool.submit(self._upload, images, part) for part in self._epoch.tasks(len(indices))]
        return partial(self._finish_whole, indices, images, tasks)

    def _finish_whole(
        self, indices: Int64, images: _Images, tasks: list[Future[tuple[DeviceImages | DevicePlanes, Good]]]
    ) -> Batch:
        parts = [task.result() for task in tasks]
        good = np.concatenate([part for _, part in parts])
        decoded = [image for arriving, _ in parts for image in arriving.received() if image is not None]
        views = crop_batch(decoded, images.windows, self._epoch.plan)
        self._stream.keep([arriving for arriving, _ in parts])
        return self._batch(indices, views, good)

    def _batch(self, indices: Int64, views: torch.Tensor, good: Good) -> Batch:
        for index in indices[~good].tolist():
            self._epoch.bad.add(index, f"damaged JPEG in {self._source.root.name}")
        return self._epoch.batch(indices, views, good, self._views_of)

    def _views_of(self, index: int) -> torch.Tensor | None:
        views = np.empty((1, self._epoch.view_bytes), np.uint8)
        images = _Images(self._source, self._epoch, np.array([index]))
        return torch.from_numpy(views[0]) if self._crop(images, slice(0, 1), views)[0] else None

    def _crop(self, images: _Images, run: slice, views: Pixels) -> Good:
        self._source.check_length()
        good = np.empty(len(views), np.bool_)
        stored, scratch = images.stored(run), self._scratch.of_this_thread()
        decode_and_crop(self._address, stored, images.windows[run], self._epoch.sides, scratch, views, good)
        return good

    def _upload(self, images: _Images, run: slice) -> tuple[DeviceImages | DevicePlanes, Good]:
        self._source.check_length()
        stored = images.stored(run)
        size = np.where(stored.modes == JPEG, 3 * stored.sizes.prod(1), stored.lengths).sum()
        memory, good = self._stream.new_memory(int(size)), np.empty(len(stored.sizes), np.bool_)
        decode_whole(self._address, stored, memory.numpy(), good)
        sizes = [(height, width) for height, width in stored.sizes.tolist()]
        if self._source.planes:
            return self._stream.upload_planes(memory, sizes), good
        return self._stream.upload_memory(memory, slots_of(sizes)), good


class _Scratch(threading.local):
    """Memory to decode one image, one mapping per thread; only touched pages take memory, until the threads end."""

    def __init__(self, source: Beton) -> None:
        self._memory = mmap(-1, max(source.scratch_bytes, 1))

    def of_this_thread(self) -> Pixels:
        return np.frombuffer(self._memory, np.uint8)
