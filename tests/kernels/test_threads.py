"""Numba's thread pool does not change torch's number of threads and does not block process exit."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import numba, torch
torch.set_num_threads(1)
from saga_fast.kernels import augment
augment(torch.zeros(8, 2, 16, 16, 3, dtype=torch.uint8), None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
assert numba.threading_layer() == "{layer}"
assert torch.get_num_threads() == 1
"""


def run(script: str, layer: str, threads: str = "2") -> None:
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": threads}
    completed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=120)
    assert completed.returncode == 0, completed.stderr.decode()


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_torch_keeps_its_number_of_threads(layer: str) -> None:
    """Numba's OpenMP layer changes it in the thread that starts it; torch would round differently."""
    run(SCRIPT.format(layer=layer), layer)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="binding to one core needs Linux")
@pytest.mark.parametrize("start", ["work()", "t = threading.Thread(target=work); t.start(); t.join()"])
def test_process_on_one_core_exits(start: str) -> None:
    """TBB, if installed, would hang at exit when a thread other than the main one started it."""
    lines = SCRIPT.replace('assert numba.threading_layer() == "{layer}"', "pass").strip().splitlines()
    body = "\n    ".join(lines)
    run(
        "import os, threading; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        f"def work():\n    {body}\n{start}",
        layer="default",
        threads="1",
    )
