"""Images read, decoded and cropped by threads of the CPU: the folder engine, and what DALI does not decode."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.kernels.crop_resize import crop_resize_image, crop_resize_images
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.core import Epoch, PendingBatch
from saga_fast.loaders.decode import Pixels
from saga_fast.loaders.decoded import load_images
from saga_fast.loaders.loader import Int64

Good = npt.NDArray[np.bool_]
KEPT = 2**26
"""Bytes of a task's images that a thread keeps memory for; more is allocated for the task alone."""


class TaskMemory(threading.local):
    """Memory for the images of a task, one block per thread, kept for the thread's next task.

    Allocated for each task, the 9 MB of 16 images of 500 x 375 pixels cost 97 page faults per image, and glibc's heaps
    kept 500 MB more than needed (8 threads).
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)

    def of_this_thread(self, size: int) -> torch.Tensor:
        """(size,) uint8, not initialised, until this thread's next call."""
        if size > KEPT:
            return torch.empty(size, dtype=torch.uint8)
        if len(self._block) < size:
            self._block = torch.empty(0, dtype=torch.uint8)  # frees the smaller one first
            self._block = torch.empty(size + size // 4, dtype=torch.uint8)
        return self._block[:size]


class CpuCrops:
    """Batches whose images are read, decoded and cropped by threads, into the batch's memory."""

    def __init__(self, epoch: Epoch, pool: ThreadPoolExecutor) -> None:
        self.epoch, self._pool = epoch, pool
        self._memory = TaskMemory()

    def start(self, indices: Int64) -> PendingBatch:
        """Submit the tasks of a batch, see :meth:`saga_fast.loaders.core.PrefetchLoader.start_epoch`."""
        views = self.epoch.new_tensor((len(indices), self.epoch.view_bytes))
        target = views.numpy()
        tasks = [self._pool.submit(self.fill, indices[part], target[part]) for part in self.epoch.tasks(len(indices))]
        return partial(self._finish, indices, views, tasks)

    def _finish(self, indices: Int64, views: torch.Tensor, tasks: list[Future[Good]]) -> Batch:
        good = np.concatenate([task.result() for task in tasks])
        return self.epoch.batch(indices, views, good, self.views_of)

    def fill(self, indices: Int64, views: Pixels) -> Good:
        """Read, decode and crop images into ``views`` (n, view_bytes); (n,) bool: whether each could be decoded."""
        epoch = self.epoch
        images = load_images(epoch.source, indices, epoch.options.max_pixels, self._memory.of_this_thread)
        epoch.bad.update({int(indices[n]): error for n, error in images.errors.items()})
        windows = epoch.windows(indices, images.sizes)
        memory = images.memory.numpy()
        crop_resize_images(memory, images.begins, images.sizes, images.inside, windows, epoch.sides, views)
        for n, image in images.elsewhere.items():
            crop_resize_image(image, windows[n], epoch.sides, views[n])
        good = images.inside.copy()
        good[list(images.elsewhere)] = True
        return good

    def views_of(self, index: int) -> torch.Tensor | None:
        """The views (view_bytes,) uint8 of one image; None if it cannot be decoded."""
        views = np.empty((1, self.epoch.view_bytes), np.uint8)
        return torch.from_numpy(views[0]) if self.fill(np.array([index]), views)[0] else None
