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


def test_values_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    monkeypatch.setattr(threads, "usable_cores", lambda: 0)  # a quota
    configure_threads(environment)
    expected = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7", "NUMBA_NUM_THREADS": "0", "KMP_BLOCKTIME": "0"}
    assert environment == expected


def test_threads_sleep_where_there_is_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: dict[str, str] = {}
    configure_threads(alone)
    assert "OMP_WAIT_POLICY" not in alone
    monkeypatch.setattr(threads, "usable_cores", lambda: 0)
    limited: dict[str, str] = {}
    configure_threads(limited)
    assert limited["OMP_WAIT_POLICY"] == "PASSIVE"
