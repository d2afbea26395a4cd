"""Epochs of a loader in a process of its own, where pytest's memory and threads do not count."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SCRIPT = """
import json, sys, threading
import numpy as np, psutil
from saga_fast.loaders import BoxTable, CropPlan, LoaderOptions, open_loader, open_source

engine, data, stops, threads, prefetch, swaps = json.loads(sys.argv[1])
process = psutil.Process()
options = LoaderOptions(batch_size=16, shuffle=True, threads=threads, prefetch=prefetch)
loader = open_loader(engine, open_source(engine, data), CropPlan(size=96, seed=0), options)
ends, busy, busy_python, seen = [], 0, 0, 0
for epoch, stop in enumerate(stops):
    if swaps:
        count = len(loader.source)
        boxes = np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (count, 1))
        table = BoxTable(boxes, np.ones(count, np.bool_), np.zeros(count, np.int32), boxes[:, 0].copy())
        loader.set_plan(CropPlan(size=96, seed=0, table=table, views="mixed"))
    loader.set_epoch(epoch)
    for step, batch in enumerate(loader, 1):
        seen += len(batch.index)
        busy, busy_python = max(busy, process.num_threads()), max(busy_python, threading.active_count())
        if step == stop:
            break
    names = sorted(thread.name for thread in threading.enumerate())
    ends.append([process.memory_info().rss, process.num_threads(), process.num_fds(), names])
json.dump([*zip(*ends), busy, busy_python, seen], sys.stdout)
"""


class Epochs(NamedTuple):
    """What a process had at the end of each epoch, and the most of it within them."""

    memory: npt.NDArray[np.float64]
    """MB, resident."""
    threads: Sequence[int]
    files: Sequence[int]
    """Open descriptors."""
    python_threads: Sequence[Sequence[str]]
    busy: int
    """Most threads within an epoch."""
    busy_python: int
    seen: int
    """Images of all epochs."""


def run_epochs(
    engine: str,
    data: Path | str,
    stops: Sequence[int | None],
    *,
    threads: int = 2,
    prefetch: int = 2,
    swaps: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Epochs:
    """Iterate a loader with batches of 16 images and views of 96 pixels; nothing may be written to stderr.

    Args:
        engine, data: of the loader.
        stops: for each epoch the batch after which it is left, None for none.
        threads, prefetch: of the loader.
        swaps: take a new box table in each epoch.
        environment: more variables.
    """
    arguments = json.dumps([engine, str(data), stops, threads, prefetch, swaps])
    command = [sys.executable, "-c", SCRIPT, arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | (environment or {}))
    assert run.stderr == ""
    memory, *others = json.loads(run.stdout)
    return Epochs(np.array(memory) / 2**20, *others)


def growth(memory: npt.NDArray[np.float64], warm_up: int) -> float:
    """By how much the most memory of later epochs exceeds that of the first ones, MB."""
    return float(memory[warm_up:].max() - memory[:warm_up].max())
