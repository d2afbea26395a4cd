"""What a new box table costs an engine: seconds until it is in use, and memory and threads over many of them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.loading import RATIO, SCALE, SEED, consume, half_side_boxes
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, Loader, open_loader
from saga_fast.profile.figures import Row, compare

SETTLED = 5
"""Epochs after which memory is to stay as it is."""


def memory_over_epochs(loader: Loader, name: str, *, epochs: int) -> Row:
    """Resident memory and threads over ``epochs`` epochs with a new table each, beside the most of the first five."""
    process, plan = psutil.Process(), loader.plan
    memory, threads = [], []
    for epoch in range(epochs):
        table = half_side_boxes(len(loader.source))
        loader.set_plan(CropPlan(size=plan.size, seed=epoch, scale=SCALE, ratio=RATIO, table=table))
        loader.set_epoch(epoch)
        consume(loader)
        memory.append(process.memory_info().rss)
        threads.append(process.num_threads())
    now, limit = max(memory[SETTLED:]), max(memory[:SETTLED])
    return {
        "name": f"{name}, most resident memory of epochs {SETTLED + 1} to {epochs}",
        "bytes": now,
        "limit": limit,
        "against": f"most of epochs 1 to {SETTLED}",
        "ratio": limit / now,
        "target": 1.0,
        "threads_at_first": max(threads[:SETTLED]),
        "threads_later": max(threads[SETTLED:]),
    }


def table_swap(engine: str, root: Path, *, count: int, size: int, batch_size: int, repeats: int) -> list[Row]:
    """Seconds from the file of a table of ``count`` rows to the loader that will crop with it; and to the first batch,
    which waits for the epoch's order, too."""
    source = ImageFolder(root)
    source.paths = [source.paths[i % len(source)] for i in range(count)]
    source.labels = np.resize(source.labels, count)
    loader = open_loader(engine, source, CropPlan(size=size, seed=SEED), batch_size=batch_size, shuffle=True)
    swaps, firsts = np.empty(repeats + 1), np.empty(repeats + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        replace(half_side_boxes(count), metadata={"dataset": source.fingerprint}).save(path)
        for epoch in range(repeats + 1):  # the first one warms up
            begin = time.perf_counter()
            loader.set_plan(CropPlan(size=size, seed=SEED, table=BoxTable.open(path)))
            swaps[epoch] = time.perf_counter() - begin
            loader.set_epoch(epoch)
            next(iter(loader))
            firsts[epoch] = time.perf_counter() - begin
    second = np.ones(repeats)
    return [
        compare(f"{engine}, {name}", seconds[1:], second, against="one second", rows=count, rounds=repeats, target=1.0)
        for name, seconds in (("table swap", swaps), ("table swap and first batch", firsts))
    ]
