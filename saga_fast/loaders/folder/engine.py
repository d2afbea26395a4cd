"""The folder engine: threads that read, decode and crop, straight from a folder of image files.

Threads, not processes: decoding and cropping release the GIL, and boxes and plan are shared without copies.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from saga_fast.loaders.core import Epoch, PendingBatch, PrefetchLoader
from saga_fast.loaders.cpu_crops import CpuCrops
from saga_fast.loaders.folder.device import DeviceCrops
from saga_fast.loaders.loader import Int64


class FolderLoader(PrefetchLoader):
    """See :func:`saga_fast.loaders.open_loader`."""

    def start_epoch(self, epoch: Epoch, pool: ThreadPoolExecutor) -> Callable[[Int64], PendingBatch]:
        """See :meth:`PrefetchLoader.start_epoch`."""
        return DeviceCrops(epoch, pool).start if self.options.crop == "gpu" else CpuCrops(epoch, pool).start
