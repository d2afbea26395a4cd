"""The cores that a process gets, and OpenMP's settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saga_fast.runtime import threads
from saga_fast.runtime.threads import configure_threads, usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, CORES),
        ({"cpu.max": "max 100000"}, CORES),
        ({"cpu.max": "150000 100000"}, min(CORES, 2)),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "nonsense"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
    ids=str,
)
def test_usable_cores(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == expected


def test_affinity_counts() -> None:
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    script += "from saga_fast.runtime.threads import usable_cores; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(("quota", "sleeps", "limit"), [(None, False, None), (7.5, True, None), (2.0, True, "2")])
def test_threads_under_a_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, sleeps: bool, limit: str | None
) -> None:
    """They sleep under any quota: spinning would use it up."""
    monkeypatch.setattr(threads, "_affinity", lambda: 8)
    monkeypatch.setattr(threads, "_quota", lambda _: quota)
    environment: dict[str, str] = {}
    configure_threads(environment)
    assert ("OMP_WAIT_POLICY" in environment) is sleeps
    assert environment.get("OMP_NUM_THREADS") == environment.get("NUMBA_NUM_THREADS") == limit
    chosen = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7", "NUMBA_NUM_THREADS": "6", "KMP_BLOCKTIME": "5"}
    environment = dict(chosen)
    configure_threads(environment)
    assert environment == chosen
