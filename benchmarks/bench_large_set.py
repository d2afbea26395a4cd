"""Memory of a large data set on one machine: its names and labels, the order of an epoch, and its box table.

The names are simulated, because a billion files are not at hand: ``CLASS/NUMBER.jpg``, a million per class, which take
the way of any source (:func:`saga_fast.loaders.listing.make_listing`). Each process opens the data set and the table
and takes its part of the first batches of a shuffled epoch, all processes at the same time.

Memory is what a process cannot give back (RssAnon), in excess of what it had with its imports; pages of mapped files
are the machine's cache. The listing's files stay in the cache folder of ``--data`` and are removed at the end.

Run it as ``PYTHONPATH=. python benchmarks/bench_large_set.py --out FILE``. A billion names need 36 GB of disk.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np

from benchmarks.scaffold import add_data, benchmark_parser, record
from saga_fast.kernels.order_keys import count_keys
from saga_fast.loaders import BoxTable
from saga_fast.loaders.listing import Columns, Rows, make_listing
from saga_fast.loaders.order import BLOCK, epoch_order
from saga_fast.profile.figures import Row
from saga_fast.runtime.cache import VARIABLE

PER_CLASS = 10**6
BATCH, BATCHES = 4096, 10
LIMIT = 2e9
"""Bytes of all processes: the target for a billion images and eight processes."""


@dataclass(frozen=True)
class Phase:
    """What a process did, in how many seconds, and the bytes that it holds since."""

    seconds: float
    memory: int


def names(count: int) -> Iterator[Rows]:
    """A million names per class."""
    for label, first in enumerate(range(0, count, PER_CLASS)):
        numbers = range(first, min(first + PER_CLASS, count))
        yield [f"{label:04}/{number:09}.jpg" for number in numbers], {"label": np.full(len(numbers), label, np.int64)}


def no_classes(_: Columns) -> tuple[str, ...]:
    return ()


def held() -> int:
    """Bytes of this process that are not pages of files."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def work(rank: int, processes: int, count: int, table: Path | None, results: Queue[dict[str, Phase]]) -> None:
    """Open everything in one process."""
    count_keys(0, 0, 1, ranges=1)  # compiles
    phases: dict[str, Phase] = {}
    begin, before = time.perf_counter(), held()

    def done(name: str) -> None:
        nonlocal begin
        phases[name] = Phase(time.perf_counter() - begin, held() - before)
        begin = time.perf_counter()

    listing = make_listing(f"simulated {count}", names(count), no_classes)
    listing.names.sha256()
    done("listing and fingerprint")
    opened = None if table is None else BoxTable.open(table)
    done("table")
    order = epoch_order(count, seed=0, epoch=1, shuffle=True, without=np.empty(0, np.int64))
    done("blocks of the order counted")
    part = BATCH // processes
    for batch in range(min(BATCHES, count // BATCH)):
        indices = order.at(np.arange(batch * BATCH + rank * part, batch * BATCH + (rank + 1) * part))
        text, labels = [listing.names[index] for index in indices.tolist()], listing.columns["label"][indices]
        assert len(text) == len(labels) == part
        if opened is not None:
            opened.boxes[indices % len(opened)].sum()
    done("first batches")
    order.close()
    done("second block of the order")
    results.put(phases)


def measure(count: int, processes: int, table: Path | None, table_rows: int) -> Iterator[Row]:
    context = multiprocessing.get_context("spawn")
    results: Queue[dict[str, Phase]] = context.Queue()
    workers = [context.Process(target=work, args=(n, processes, count, table, results)) for n in range(processes)]
    for worker in workers:
        worker.start()
    phases = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    for name in phases[0]:
        memory = sum(each[name].memory for each in phases)
        rows = table_rows if name == "table" else count
        yield {
            "name": f"{name}, {rows} images, {processes} processes",
            "bytes": memory,
            "limit": LIMIT,
            "against": "the target for 1e9 images and 8 processes",
            "ratio": LIMIT / memory,
            "images": rows,
            "processes": processes,
            "seconds": max(each[name].seconds for each in phases),
            "block": BLOCK,
        }


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data(parser)
    parser.add_argument("--images", type=int, default=10**9)
    parser.add_argument("--table-rows", type=int, default=10**8, help="rows of the table; it is made in memory")
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    folder = options.data / "large_set"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = str(folder / "cache")
    table = folder / "table.safetensors"
    try:
        BoxTable.whole(options.table_rows).save(table)
        record(options.out, measure(options.images, options.processes, table, options.table_rows))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
