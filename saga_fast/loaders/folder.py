"""The folder engine: threads that read, decode and crop, straight from a folder of image files.

Threads, not processes: decoding and cropping release the GIL, and the boxes and the plan are shared as they are. A
task is a run of a batch's images; a thread reads, decodes and crops them into the batch's memory. At most
``prefetch`` batches are under way ahead of the one being used, so memory stays bounded, and batches come out in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch, make_batch
from saga_fast.loaders.batch_memory import BatchMemory
from saga_fast.loaders.decode import DecodeError, Pixels, decode_image
from saga_fast.loaders.folder_device import CropsOnDevice, Pending
from saga_fast.loaders.loader import Int64, Loader, LoaderOptions, substitutes
from saga_fast.loaders.plan import Plan, view_bytes, view_sides
from saga_fast.loaders.source import Source


class FolderLoader(Loader):
    """See :func:`saga_fast.loaders.open_loader`."""

    def __init__(self, source: Source, plan: Plan, options: LoaderOptions) -> None:
        super().__init__(source, plan, options)
        # Batches under way, the caller's, and the one it takes next.
        self._memory = BatchMemory(keep=options.prefetch + 2)

    def __iter__(self) -> Iterator[Batch]:
        order, size = self.order(), self.options.batch_size
        starts = iter(range(0, len(order), size))
        work = self._work()
        ahead: deque[Pending] = deque()
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="saga-fast-folder")
        try:
            while True:
                while len(ahead) <= self.options.prefetch and (start := next(starts, None)) is not None:
                    ahead.append(work.start(pool, order[start : start + size]))
                if not ahead:
                    return
                batch = work.finish(ahead.popleft())
                if len(batch.index):
                    yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _work(self) -> _CropsOnCpu | CropsOnDevice:
        # Short tasks let the threads finish a batch together; 16 images amortise a task's 30 us.
        options = self.options
        task_size = max(1, min(16, -(-options.batch_size // (2 * options.threads))))
        if options.crop == "gpu":
            return CropsOnDevice(self.source, self.plan, self.epoch, options, task_size)
        crops = EpochCrops(self.source, self.plan, self.epoch, options.seed, self.bad, options.max_pixels)
        return _CropsOnCpu(crops, options, self._memory, task_size)


class _CropsOnCpu:
    """Batches whose images are read, decoded and cropped by threads, into the batch's memory."""

    def __init__(self, crops: EpochCrops, options: LoaderOptions, memory: BatchMemory, task_size: int) -> None:
        self._crops, self._options, self._memory, self._task_size = crops, options, memory, task_size

    def start(self, pool: ThreadPoolExecutor, indices: Int64) -> Pending:
        shape = (len(indices), view_bytes(self._crops.plan))
        pinned = self._options.device.type == "cuda"
        views = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pinned else self._memory.tensor(shape)
        target = views.numpy()
        parts = (slice(begin, begin + self._task_size) for begin in range(0, len(indices), self._task_size))
        return Pending(
            indices.copy(), [pool.submit(self._crops.fill, indices[part], target[part]) for part in parts], views
        )

    def finish(self, pending: Pending) -> Batch:
        assert pending.views is not None
        good = np.concatenate([task.result() for task in pending.tasks])
        return self._crops.batch(pending.indices, pending.views, good, substitute=self._options.shuffle)


class EpochCrops:
    """One epoch's plan, as threads work it off image by image."""

    def __init__(self, source: Source, plan: Plan, epoch: int, seed: int, bad: BadImages, max_pixels: int) -> None:
        self.source, self.plan = source, plan
        self._epoch, self._seed, self._bad, self._max_pixels = epoch, seed, bad, max_pixels
        self.sides = view_sides(plan)

    def windows(self, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """See :meth:`saga_fast.loaders.plan.Plan.windows`."""
        return self.plan.windows(self._epoch, indices, sizes)

    def fill(self, indices: Int64, views: Pixels) -> npt.NDArray[np.bool_]:
        """Read, decode and crop images into ``views`` (n, bytes); which of them could be decoded, (n,) bool."""
        images = [self._read(int(index)) for index in indices]
        good = np.array([image is not None for image in images])
        sizes = np.array([image.shape[:2] if image is not None else (1, 1) for image in images], np.int64)
        windows = self.windows(indices, sizes)
        for n, image in enumerate(images):
            if image is not None:
                crop_resize_image(image, windows[n], self.sides, views[n])
        return good

    def batch(self, indices: Int64, views: torch.Tensor, good: npt.NDArray[np.bool_], *, substitute: bool) -> Batch:
        """The batch of ``views`` (B, bytes), in which images that are not ``good`` are substituted or left out."""
        if not good.all() and substitute:
            spare = np.empty((1, views.shape[1]), np.uint8)
            for slot in np.flatnonzero(~good):
                indices[slot] = self._substitute(int(indices[slot]), indices, spare)
                views[slot] = torch.from_numpy(spare[0])
        elif not good.all():
            indices, views = indices[good], views[torch.from_numpy(good)]
        return make_batch(views, indices, self.source, self.plan)

    def _substitute(self, index: int, taken: Int64, views: Pixels) -> int:
        """Fill a bad image's place in a training batch with another image; which one."""
        candidates = substitutes(self.source, self._bad, index, taken, seed=self._seed, epoch=self._epoch)
        return next(candidate for candidate in candidates if self.fill(np.array([candidate]), views)[0])

    def _read(self, index: int) -> Pixels | None:
        try:
            return decode_image(self.source.read(index), self._max_pixels)
        except (DecodeError, OSError) as error:
            self._bad.add(index, str(error))
            return None
