"""Measuring a stream of batches: rate, time per batch, CPU use and memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import psutil

from saga_fast.loaders import Batch, Loader, Source
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.profile.figures import Row

Epoch = Callable[[], Iterable[int]]
"""Called for each epoch; gives the number of images of each batch when the batch is ready."""
TASK = 16
"""Images per task of the decode-only loop, as in the folder engine."""


@dataclass(frozen=True)
class Measured:
    """Figures of a stream of batches.

    Attributes:
        images_per_second: the rate.
        batch_p50, batch_p95: percentiles of the seconds from one batch to the next.
        cpu: mean number of cores that this process kept busy.
        resident_bytes: memory of this process at the end.
    """

    images_per_second: float
    batch_p50: float
    batch_p95: float
    cpu: float
    resident_bytes: int

    def row(self, name: str, *, limit: float, against: str, **facts: object) -> Row:
        """A row of these figures; ``limit`` is the rate of ``against``, images/s."""
        ratio = self.images_per_second / limit
        return {"name": name, "limit": limit, "against": against, "ratio": ratio, **asdict(self), **facts}


def measure(epoch: Epoch, *, seconds: float, warmup: int) -> Measured:
    """The figures of a stream that is read for ``seconds``.

    Args:
        epoch: the stream; repeated as often as needed.
        seconds: how long to measure; the last batch is waited for, and at least two batches are measured.
        warmup: batches before the measurement, which compile kernels and use up the prefetched batches.
    """

    def epochs() -> Generator[int]:
        while True:
            yield from epoch()

    stream = epochs()
    for _ in range(warmup):
        next(stream)
    process = psutil.Process()
    busy, start = sum(process.cpu_times()[:2]), time.perf_counter()
    images, marks = 0, [start]
    for count in stream:
        images += count
        marks.append(time.perf_counter())
        if marks[-1] - start >= seconds and len(marks) > 2:
            break
    stream.close()  # ends the loader's threads
    elapsed = marks[-1] - start
    p50, p95 = (float(value) for value in np.percentile(np.diff(marks), [50, 95]))
    return Measured(
        images_per_second=images / elapsed,
        batch_p50=p50,
        batch_p95=p95,
        cpu=(sum(process.cpu_times()[:2]) - busy) / elapsed,
        resident_bytes=process.memory_info().rss,
    )


def batches(loader: Loader, use: Callable[[Batch], object] | None = None) -> Epoch:
    """A loader's epochs for :func:`measure`; ``use`` is called with each batch."""
    epochs = itertools.count()

    def epoch() -> Iterable[int]:
        loader.set_epoch(next(epochs))
        for batch in loader:
            if use is not None:
                use(batch)
            yield len(batch.index)

    return epoch


def decoding(source: Source, *, threads: int, batch_size: int) -> Epoch:
    """Reading and decoding alone, for :func:`measure`: the limit of the loaders that decode on the CPU."""

    def decode(indices: range) -> None:
        for index in indices:
            try:
                decode_image(source.read(index))
            except (DecodeError, OSError):
                continue  # its time counts; the loaders list such images

    def epoch() -> Iterable[int]:
        with ThreadPoolExecutor(threads) as pool:
            parts = [range(at, min(at + TASK, len(source))) for at in range(0, len(source), TASK)]
            per_batch = max(batch_size // TASK, 1)
            # Two batches ahead, as a loader's prefetch; map() would queue the whole data set.
            for count in _ahead(pool, [partial(decode, part) for part in parts], per_batch):
                yield count * TASK

    return epoch


def _ahead(pool: ThreadPoolExecutor, tasks: list[Callable[[], None]], per_batch: int) -> Iterable[int]:
    """Run tasks with two batches of them ahead; yields the number of tasks of each finished batch."""
    pending = []
    try:
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) == 3 * per_batch:
                for done in pending[:per_batch]:
                    done.result()
                del pending[:per_batch]
                yield per_batch
        for done in pending:
            done.result()
        yield len(pending)
    finally:
        for unfinished in pending:
            unfinished.cancel()
