"""The cost of a new box table in an engine: seconds until it is in use, and memory and threads over many of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.loading import SEED, LoadingBench, consume, half_side_boxes
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, open_loader, open_source
from saga_fast.profile.figures import Row, compare

SETTLED = 5
"""Epochs after which memory should no longer grow."""


def memory_over_epochs(engine: str, path: Path, bench: LoadingBench) -> Row:
    """The largest resident memory and number of threads over epochs with a new table each, against the first five."""
    source = open_source(engine, path)
    loader, process = open_loader(engine, source, bench.crops(), bench.options), psutil.Process()
    memory, threads = [], []
    for epoch in range(bench.epochs):
        loader.set_plan(bench.crops(half_side_boxes(len(source)), seed=epoch))
        loader.set_epoch(epoch)
        consume(loader)
        memory.append(process.memory_info().rss)
        threads.append(process.num_threads())
    now, limit = max(memory[SETTLED:]), max(memory[:SETTLED])
    return {
        "name": f"{engine}, most resident memory of epochs {SETTLED + 1} to {bench.epochs}",
        "bytes": now,
        "limit": limit,
        "against": f"most of epochs 1 to {SETTLED}",
        "ratio": limit / now,
        "target": 1.0,
        "threads_at_first": max(threads[:SETTLED]),
        "threads_later": max(threads[SETTLED:]),
    }


def table_swap(engine: str, bench: LoadingBench) -> Iterator[Row]:
    """Seconds from a table's file to the loader that crops with it, and to the first batch, which needs the order."""
    count, size = bench.rows, bench.size
    source = ImageFolder(bench.root)
    source.paths = [source.paths[i % len(source)] for i in range(count)]
    source.labels = np.resize(source.labels, count)
    loader = open_loader(engine, source, CropPlan(size=size, seed=SEED), bench.options)
    swaps, firsts = np.empty(bench.repeats + 1), np.empty(bench.repeats + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        replace(half_side_boxes(count), metadata={"dataset": source.fingerprint}).save(path)
        for epoch in range(bench.repeats + 1):  # the first one warms up
            begin = time.perf_counter()
            loader.set_plan(CropPlan(size=size, seed=SEED, table=BoxTable.open(path)))
            swaps[epoch] = time.perf_counter() - begin
            loader.set_epoch(epoch)
            next(iter(loader))
            firsts[epoch] = time.perf_counter() - begin
    facts: Row = {"rows": count, "rounds": bench.repeats, "target": 1.0}
    for name, seconds in (("table swap", swaps), ("table swap and first batch", firsts)):
        yield compare(f"{engine}, {name}", seconds[1:], np.ones(bench.repeats), against="one second") | facts
