"""Memory and threads of the folder engine stay flat over epochs in which the box table is swapped every time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EPOCHS, WARM_UP, THREADS, NUMBA_THREADS = 30, 5, 4, 8
# Runs apart from pytest, whose own memory would count. "whole" epochs read 64 images; "cut" ones stop after 4 batches
# of a data set so long (30,000 links to one image) that its order and its table weigh.
SCRIPT = """
import json, sys, threading
import numpy as np, psutil
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, LoaderOptions, open_loader

root, stop, epochs, workers = sys.argv[1], *map(int, sys.argv[2:])
folder, process = ImageFolder(root), psutil.Process()
plan = CropPlan(size=96, seed=0)
options = LoaderOptions(batch_size=16, shuffle=True, threads=workers, prefetch=3)
loader = open_loader("folder", folder, plan, options)
memory, threads, busy, python_threads, seen = [], [], [], [], 0
for epoch in range(epochs):
    boxes = np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (len(folder), 1))
    table = BoxTable(boxes, np.ones(len(boxes), np.bool_), np.zeros(len(boxes), np.int32), boxes[:, 0].copy())
    loader.set_plan(CropPlan(size=96, seed=0, table=table, views="mixed"))
    loader.set_epoch(epoch)
    for step, batch in enumerate(loader, 1):
        seen += len(batch.index)
        busy.append(process.num_threads())
        if step == stop:
            break
    memory.append(process.memory_info().rss)
    threads.append(process.num_threads())
    python_threads.append(threading.active_count())
names = ("memory", "threads", "busy", "python_threads", "seen")
json.dump({name: globals()[name] for name in names}, sys.stdout)
"""


def make_images(root: Path, images: int, links: int) -> None:
    (root / "a").mkdir(parents=True)
    for number in range(images):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(root / "a" / f"{number:05}.jpg")
    for number in range(images, images + links):
        (root / "a" / f"{number:05}.jpg").symlink_to("00000.jpg")


@pytest.mark.parametrize(
    # An epoch that is kept weighs 3.5 MB of views in the first case, 1 MB of table and order in the second; without a
    # leak, 0.2 MB in all were measured. Numba's
    # threading layers are tried in this order. Where decoding threads enter a parallel kernel, tbb keeps some 40 KB of
    # each thread that ends, and omp starts a team of threads for each.
    ("images", "links", "stop", "layers"),
    [(64, 0, -1, "tbb omp workqueue"), (1, 29_999, 4, "omp tbb workqueue")],
    ids=["whole", "cut"],
)
def test_memory_and_threads_stay_flat(tmp_path: Path, images: int, links: int, stop: int, layers: str) -> None:
    make_images(tmp_path, images, links)
    environment = {
        "NUMBA_THREADING_LAYER_PRIORITY": layers,
        "NUMBA_NUM_THREADS": str(NUMBA_THREADS),
        "MALLOC_MMAP_THRESHOLD_": "65536",  # freed arrays go back to the system at once, so that 2 MB can be the limit
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(stop), str(EPOCHS), str(THREADS)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    result = json.loads(run.stdout)
    assert result["seen"] == EPOCHS * 64
    assert len(result["memory"]) == EPOCHS
    memory = np.maximum.accumulate(result["memory"][WARM_UP - 1 :]) / 2**20
    step = np.diff(memory).max()  # once, near epoch 25, it grows by 1.8 to 1.9 MB: a leak grows in every epoch
    growth = memory[-1] - memory[0] - step
    assert growth < 2, f"{growth:.1f} MB in {EPOCHS - WARM_UP} epochs, besides {step:.1f} MB at once"
    assert step < 3, f"{step:.1f} MB at once"
    assert set(result["python_threads"]) == {1}
    # Numba's helper threads may end a moment after the thread they helped; one leaked per epoch would be 25.
    assert max(result["threads"][WARM_UP:]) <= max(result["threads"][:WARM_UP]) + NUMBA_THREADS
    # The engine's threads and one set of Numba's, not a set for each of the engine's: 64 x 64 on a server.
    assert max(result["busy"]) <= 1 + THREADS + NUMBA_THREADS
