"""Memory and threads of the ffcv engine stay flat over epochs in which the box table is swapped every time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_fast.cli import main

EPOCHS, WARM_UP, THREADS = 30, 6, 4
# Runs apart from pytest, whose own memory would count. Epochs of the second half stop after 2 of 4 batches.
SCRIPT = """
import json, sys, threading
import numpy as np, psutil
from saga_fast.loaders import BoxTable, CropPlan, LoaderOptions, open_loader

path, epochs, workers = sys.argv[1], *map(int, sys.argv[2:])
process = psutil.Process()
options = LoaderOptions(batch_size=16, shuffle=True, threads=workers, prefetch=3)
loader = open_loader("ffcv", path, CropPlan(size=96, seed=0), options)
memory, threads, busy, seen = [], [], [], 0
for epoch in range(2 * epochs):
    boxes = np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (len(loader.source), 1))
    table = BoxTable(boxes, np.ones(len(boxes), np.bool_), np.zeros(len(boxes), np.int32), boxes[:, 0].copy())
    loader.set_plan(CropPlan(size=96, seed=0, table=table, views="mixed"))
    loader.set_epoch(epoch)
    for step, batch in enumerate(loader, 1):
        seen += len(batch.index)
        busy.append(threading.active_count())
        if epoch >= epochs and step == 2:
            break
    memory.append(process.memory_info().rss)
    threads.append(threading.active_count())
names = ("memory", "threads", "busy", "seen")
json.dump({name: globals()[name] for name in names}, sys.stdout)
"""


@pytest.mark.parametrize("mode", ["jpg", "yuv420"])
def test_memory_and_threads_stay_flat(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 256, (80 + number, 100, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number:05}.jpg")
    assert main(["pack", str(tmp_path), str(tmp_path / "x.beton"), "--mode", mode]) == 0
    # Freed arrays go back to the system at once, so that 2 MB can be the limit: an epoch's views weigh 3.5 MB.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "x.beton"), str(EPOCHS), str(THREADS)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    result = json.loads(run.stdout)
    assert result["seen"] == EPOCHS * (64 + 32)
    growth = (max(result["memory"][WARM_UP:]) - result["memory"][WARM_UP - 1]) / 2**20
    assert growth < 2, f"{growth:.1f} MB in {2 * EPOCHS - WARM_UP} epochs"
    assert set(result["threads"]) == {1}
    assert max(result["busy"]) <= 1 + THREADS
