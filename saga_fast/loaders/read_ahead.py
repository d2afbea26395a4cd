"""Sources whose images come over a network: their reads are started before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from saga_fast.loaders.source import Source


class StartedReads(Source, Protocol):
    """The images of a data set for one iteration, whose reads can be started early. Indices are as in the data set."""

    def start(self, indices: npt.NDArray[np.int64]) -> None:
        """Start to read images, (n,) int64. ``read`` waits for them, and starts what was not started."""

    def stop(self) -> None:
        """End all reads. A thread that waits in ``read``, or calls it later, gets a CancelledError."""


@runtime_checkable
class ReadsEarly(Protocol):
    """A source that can start reads early."""

    def started_reads(self) -> StartedReads:
        """The images for one iteration."""


class ReadAhead:
    """What an iteration reads from, and its reads in progress; for most sources there are none.

    Attributes:
        source: the images; read from these.
    """

    def __init__(self, source: Source) -> None:
        self._reads = source.started_reads() if isinstance(source, ReadsEarly) else None
        self.source: Source = source if self._reads is None else self._reads

    def start(self, indices: npt.NDArray[np.int64]) -> None:
        """Start to read images that are needed next, (n,) int64."""
        if self._reads is not None:
            self._reads.start(indices)

    def lead(self, batches: Iterable[npt.NDArray[np.int64]], count: int) -> Iterator[npt.NDArray[np.int64]]:
        """The batches' images, (B,) int64 each, of which reads have been started ``count`` batches ahead."""
        started: deque[npt.NDArray[np.int64]] = deque()
        for indices in batches:
            self.start(indices)
            started.append(indices)
            if len(started) > count:
                yield started.popleft()
        yield from started

    def stop(self) -> None:
        """End the reads in progress, if the iteration is closed early."""
        if self._reads is not None:
            self._reads.stop()
