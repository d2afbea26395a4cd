"""Memory and threads of the ffcv engine stay flat over epochs in which the box table is swapped every time."""

from pathlib import Path

import numpy as np
import pytest
from epochs_in_process import run_epochs
from PIL import Image

from saga_fast.cli import main

EPOCHS, WARM_UP, THREADS = 30, 6, 4


@pytest.mark.parametrize("mode", ["jpg", "yuv420"])
def test_memory_and_threads_stay_flat(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 256, (80 + number, 100, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number:05}.jpg")
    assert main(["pack", str(tmp_path), str(tmp_path / "x.beton"), "--mode", mode]) == 0
    # Freed arrays go back to the system at once, so that 2 MB can be the limit: an epoch's views weigh 3.5 MB.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    stops = [*EPOCHS * [None], *EPOCHS * [2]]  # 4 batches each
    epochs = run_epochs("ffcv", tmp_path / "x.beton", stops, threads=THREADS, prefetch=3, environment=environment)
    assert epochs.seen == EPOCHS * (64 + 32)
    assert epochs.memory[WARM_UP:].max() - epochs.memory[WARM_UP - 1] < 2
    assert epochs.python_threads == 2 * EPOCHS * [["MainThread"]]
    assert epochs.busy_python <= 1 + THREADS
