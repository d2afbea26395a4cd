"""OpenMP's threads sleep while other processes want the cores; benchmarks/bench_busy.py measures what that gains."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saga_fast.runtime import spinning
from saga_fast.runtime.spinning import IdleTeam, busy_seconds, is_contended, openmp_libraries

if sys.platform != "linux":
    pytest.skip("of Linux", allow_module_level=True)

STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 5000 60 7 8 9 0 0
cpu1 100 0 0 5000 60 0 0 0 0 0
cpu10 700 0 0 0 0 0 0 0 0 0
intr 12345 6 7
"""
THREADS = """
import sys, threading, time
from saga_fast.__main__ import main
sys.argv = ["saga-fast", "--version"]
main()
print(*sorted(thread.name for thread in threading.enumerate()))
"""


def test_busy_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spinning, "STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text(STAT)
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds({0}) == 174 / tick
    assert busy_seconds({0, 1}) == 274 / tick


def test_the_files_of_this_machine() -> None:
    cores = os.sched_getaffinity(0)
    before, own = busy_seconds(cores), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    assert busy_seconds(cores) - before > 0.1
    assert any("libgomp" in path for path in openmp_libraries())


def test_contention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert is_contended(0.3, 2, sleeping=False)
    assert not is_contended(0.2, 2, sleeping=False)
    assert is_contended(0.2, 2, sleeping=True)
    assert not is_contended(0.1, 2, sleeping=True)
    assert not is_contended(1.0, 4, sleeping=False)  # there are cores for both


def has_threads(count: int) -> bool:
    """Whether this process comes to have that many threads within ten seconds."""
    deadline = time.monotonic() + 10
    while len(list(Path("/proc/self/task").iterdir())) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return time.monotonic() < deadline


def test_a_team_comes_and_goes() -> None:
    team, before = IdleTeam(5), len(list(Path("/proc/self/task").iterdir()))
    for _ in range(2):
        for _ in range(2):
            team.start()
            assert has_threads(before + 5)
        for _ in range(2):
            team.end()
            assert has_threads(before)


@pytest.mark.parametrize("policy", [{}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "1"}], ids=str)
def test_a_policy_of_the_user_is_kept(policy: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in spinning.POLICIES} | policy
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment)
    assert ("saga-fast-cores" in run.stdout.splitlines()[-1].split()) is not bool(policy), run.stderr
