"""The cores that a process gets, and OpenMP's settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_values_of_the_user_are_kept() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    configure_threads(environment)
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"
    assert environment["KMP_BLOCKTIME"] == "0"
    empty: dict[str, str] = {}
    configure_threads(empty)
    assert empty["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_command_line_waits_passively() -> None:
    """Set before torch is imported, which reads it once."""
    script = "import sys, saga_fast.__main__ as m, os; sys.argv = ['saga-fast', '--version']; m.main();"
    script += "print(os.environ['OMP_WAIT_POLICY'])"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines()[-1] == "PASSIVE", run.stderr
