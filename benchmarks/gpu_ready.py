"""A loader whose batches are in the device's memory: what a loop costs beyond loading."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saga_fast.loaders import BadImages, Batch, Plan
from saga_fast.loaders.loader import Loader, ResolvedOptions
from saga_fast.loaders.source import fingerprint


@dataclass
class _NoFiles:
    """A data set of ``count`` images that cannot be read."""

    count: int
    root: Path = Path("memory")
    classes: tuple[str, ...] = ()
    paths: Sequence[str] = field(init=False)
    labels: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.paths = [f"{i:07d}.jpg" for i in range(self.count)]
        self.labels = np.full(self.count, -1)

    @property
    def fingerprint(self) -> str:
        """See :class:`saga_fast.loaders.Source`."""
        return fingerprint(self.paths)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> bytes:
        """See :class:`saga_fast.loaders.Source`."""
        raise OSError(f"image {index} is not a file")


class ReadyLoader(Loader):
    """An epoch of ``count`` full batches: the stored ones in turn.

    Args:
        stored: batches; each is the main views (B, V, S, S, 3) uint8, then the plan's further views, on one device.
        count: batches per epoch.
        plan: of which only the sizes are used.
        skip: batches before the clock starts.

    Attributes:
        begin: ``time.perf_counter()`` when the batch after the skipped ones was asked for, the device idle.
    """

    def __init__(self, stored: Sequence[Sequence[Tensor]], *, count: int, plan: Plan, skip: int = 0) -> None:
        size, device = len(stored[0][0]), stored[0][0].device
        options = ResolvedOptions(batch_size=size, threads=1, device=device, decode="cpu", crop="cpu")
        source = _NoFiles(size * count)
        super().__init__(source, plan, options, BadImages(source))
        self.begin = 0.0
        self._stored, self._skip = stored, skip

    @property
    def timed(self) -> int:
        """Images after the skipped batches."""
        return len(self.source) - self._skip * self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        for number, index in enumerate(self.index_batches()):
            if number == self._skip:
                if self.options.device.type == "cuda":
                    torch.cuda.synchronize()
                self.begin = time.perf_counter()
            views, *more = self._stored[number % len(self._stored)]
            yield Batch(views, torch.from_numpy(index), torch.from_numpy(self.source.labels[index]), tuple(more))
