"""Memory and threads of the folder engine stay flat over epochs in which the box table is swapped every time."""

from pathlib import Path

import numpy as np
import pytest
from epochs_in_process import run_epochs
from PIL import Image

EPOCHS, WARM_UP, THREADS, NUMBA_THREADS = 30, 5, 4, 8


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
    # "whole" epochs read 64 images; "cut" ones stop after 4 batches of a data set so long (30,000 links to one image)
    # that its order and its table weigh.
    [(64, 0, None, "tbb omp workqueue"), (1, 29_999, 4, "omp tbb workqueue")],
    ids=["whole", "cut"],
)
def test_memory_and_threads_stay_flat(tmp_path: Path, images: int, links: int, stop: int | None, layers: str) -> None:
    make_images(tmp_path, images, links)
    environment = {
        "NUMBA_THREADING_LAYER_PRIORITY": layers,
        "NUMBA_NUM_THREADS": str(NUMBA_THREADS),
        "MALLOC_MMAP_THRESHOLD_": "65536",  # freed arrays go back to the system at once, so that 2 MB can be the limit
    }
    epochs = run_epochs("folder", tmp_path, EPOCHS * [stop], threads=THREADS, prefetch=3, environment=environment)
    assert epochs.seen == EPOCHS * 64
    memory = np.maximum.accumulate(epochs.memory[WARM_UP - 1 :])
    step = np.diff(memory).max()  # once, near epoch 25, it grows by 1.8 to 1.9 MB: a leak grows in every epoch
    assert memory[-1] - memory[0] - step < 2
    assert step < 3
    assert epochs.python_threads == EPOCHS * [["MainThread"]]
    # Numba's helper threads may end a moment after the thread they helped; one leaked per epoch would be 25.
    assert max(epochs.threads[WARM_UP:]) <= max(epochs.threads[:WARM_UP]) + NUMBA_THREADS
    # The engine's threads and one set of Numba's, not a set for each of the engine's: 64 x 64 on a server.
    assert epochs.busy <= 1 + THREADS + NUMBA_THREADS
