"""Images read, decoded and cropped by threads of the CPU: the folder engine, and what DALI does not decode."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.core import Epoch, PendingBatch
from saga_fast.loaders.decode import DecodeError, Pixels, read_pixels
from saga_fast.loaders.loader import Int64

Good = npt.NDArray[np.bool_]


class CpuCrops:
    """Batches whose images are read, decoded and cropped by threads, into the batch's memory."""

    def __init__(self, epoch: Epoch, pool: ThreadPoolExecutor) -> None:
        self.epoch, self._pool = epoch, pool

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
        images = [self._read(int(index)) for index in indices]
        good = np.array([image is not None for image in images])
        sizes = np.array([image.shape[:2] if image is not None else (1, 1) for image in images], np.int64)
        windows = self.epoch.windows(indices, sizes)
        for n, image in enumerate(images):
            if image is not None:
                crop_resize_image(image, windows[n], self.epoch.sides, views[n])
        return good

    def views_of(self, index: int) -> torch.Tensor | None:
        """The views (view_bytes,) uint8 of one image; None if it cannot be decoded."""
        views = np.empty((1, self.epoch.view_bytes), np.uint8)
        return torch.from_numpy(views[0]) if self.fill(np.array([index]), views)[0] else None

    def _read(self, index: int) -> Pixels | None:
        try:
            return read_pixels(self.epoch.source, index, self.epoch.options.max_pixels)
        except DecodeError as error:
            self.epoch.bad.add(index, str(error))
            return None
