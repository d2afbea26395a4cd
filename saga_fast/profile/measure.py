"""Measuring a stream of batches: its rate, how evenly it comes, and what it takes of the machine."""

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

TASK = 16
"""Images per task of the decode-only loop, as in the folder engine."""


@dataclass(frozen=True)
class Measured:
    """What a stream of batches did."""

    images_per_second: float
    batch_p50: float
    """Seconds from one batch to the next, the median."""
    batch_p95: float
    cpu: float
    """Cores kept busy by this process."""
    resident_bytes: int

    def row(self, name: str, *, limit: float, against: str, **facts: object) -> Row:
        """A row of figures; ``limit`` is ``against``'s rate, images/s."""
        ratio = self.images_per_second / limit
        return {"name": name, "limit": limit, "against": against, "ratio": ratio, **asdict(self), **facts}


def measure(epoch: Callable[[], Iterable[int]], *, seconds: float, warmup: int) -> Measured:
    """Draw batches for some seconds.

    Args:
        epoch: called for every epoch; gives the number of images in each batch, as it is ready.
        seconds: how long to measure; the batch under way is waited for, and at least two are measured.
        warmup: batches before that, which compile kernels and use up what was prefetched.
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
    taken = marks[-1] - start
    p50, p95 = (float(value) for value in np.percentile(np.diff(marks), [50, 95]))
    return Measured(
        images_per_second=images / taken,
        batch_p50=p50,
        batch_p95=p95,
        cpu=(sum(process.cpu_times()[:2]) - busy) / taken,
        resident_bytes=process.memory_info().rss,
    )


def batches(loader: Loader, use: Callable[[Batch], object] | None = None) -> Callable[[], Iterable[int]]:
    """A loader's epochs for :func:`measure`, each batch given to ``use``."""
    epochs = itertools.count()

    def epoch() -> Iterable[int]:
        loader.set_epoch(next(epochs))
        for batch in loader:
            if use is not None:
                use(batch)
            yield len(batch.index)

    return epoch


def decoding(source: Source, *, threads: int, batch_size: int) -> Callable[[], Iterable[int]]:
    """Reading and decoding alone, pixels dropped: the limit of any loader of these images that decodes on the CPU."""

    def decode(indices: range) -> None:
        for index in indices:
            try:
                decode_image(source.read(index))
            except (DecodeError, OSError):
                continue  # it took its time; the loaders list it

    def epoch() -> Iterable[int]:
        with ThreadPoolExecutor(threads) as pool:
            parts = [range(at, min(at + TASK, len(source))) for at in range(0, len(source), TASK)]
            per_batch = max(batch_size // TASK, 1)
            # Some batches ahead, as a loader's prefetch; map() would queue the whole data set.
            for group in _ahead(pool, [partial(decode, part) for part in parts], per_batch):
                yield group * TASK

    return epoch


def _ahead(pool: ThreadPoolExecutor, tasks: list[Callable[[], None]], per_batch: int) -> Iterable[int]:
    """Run tasks with two batches of them ahead; the number of tasks in each batch, as it is done."""
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
        for left in pending:
            left.cancel()
