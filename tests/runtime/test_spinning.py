"""OpenMP's threads sleep while other processes want the cores; benchmarks/bench_busy.py measures what that gains."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from saga_fast.runtime import spinning
from saga_fast.runtime.spinning import IdleTeam, adapt_spinning, busy_seconds, is_contended, openmp_libraries

if sys.platform != "linux":
    pytest.skip("of Linux", allow_module_level=True)

STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 5000 60 7 8 9 0 0
cpu1 100 0 0 5000 60 0 0 0 0 0
cpu10 700 0 0 0 0 0 0 0 0 0
intr 12345 6 7
"""


def test_busy_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spinning, "STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text(STAT)
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds({0}) == 174 / tick
    assert busy_seconds({0, 1}) == 274 / tick
    with pytest.raises(ValueError, match=r"no figures of cores \[1, 2\]"):
        busy_seconds({1, 2})


def test_the_files_of_this_machine() -> None:
    cores = os.sched_getaffinity(0)
    before, own = busy_seconds(cores), time.process_time()
    while time.process_time() < own + 0.2:
        pass
    assert busy_seconds(cores) - before > 0.1
    assert any("libgomp" in path for path in openmp_libraries())


def test_contention() -> None:
    assert is_contended(0.3, 2, 2, sleeping=False)
    assert not is_contended(0.2, 2, 2, sleeping=False)
    assert is_contended(0.2, 2, 2, sleeping=True)
    assert not is_contended(0.1, 2, 2, sleeping=True)
    assert not is_contended(1.0, 2, 4, sleeping=False)  # there are cores for both
    assert not is_contended(1.0, 1, 1, sleeping=False)  # one thread waits for none


TEAM = """
import time, torch
from pathlib import Path
from saga_fast.runtime.spinning import IdleTeam
torch.set_num_threads(1)

def wait_for(count):
    deadline = time.monotonic() + 10
    while len(list(Path("/proc/self/task").iterdir())) != count:
        assert time.monotonic() < deadline, (count, len(list(Path("/proc/self/task").iterdir())))
        time.sleep(0.01)

before, team = len(list(Path("/proc/self/task").iterdir())), IdleTeam()
for _ in range(2):
    for _ in range(2):
        team.start(5)
        assert team.is_running
        wait_for(before + 5)
    for _ in range(2):
        team.end()
        wait_for(before)
"""


def test_a_team_comes_and_goes() -> None:
    subprocess.run([sys.executable, "-c", TEAM], check=True)


def test_a_team_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    team = IdleTeam()
    team.start(2)
    assert not team.is_running
    team.end()


@pytest.mark.parametrize("policy", [{}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "1"}], ids=str)
def test_a_policy_of_the_user_is_kept(policy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
    environment = dict(policy)
    adapt_spinning(environment)
    assert environment == policy
    assert started == ([] if policy else [spinning.THREAD_NAME])


@pytest.mark.parametrize("content", [None, "", "cpu0 0 0 0 0 0 0 0 0 0 0", "nonsense"])
def test_threads_sleep_where_nothing_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(spinning, "STAT", tmp_path / "stat")
    if content is not None:
        (tmp_path / "stat").write_text(content)
    environment: dict[str, str] = {}
    adapt_spinning(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}


SWITCHED = """
import threading, time
from saga_fast.runtime import spinning
used = iter([1.0, 1.0, 0.0, 0.0, 1.0])
spinning.PERIOD = 0.01
spinning._Usage.by_other_processes = lambda now, before: next(used)
spinning._torch_threads = lambda: len(spinning.os.sched_getaffinity(0)) + 1
states = []
class Team:
    is_running = False
    def start(self, size): self.is_running = True; states.append(size)
    def end(self): self.is_running = False; states.append(0)
spinning.IdleTeam = Team
try:
    spinning._adapt(spinning.os.sched_getaffinity(0))
except RuntimeError: pass
except StopIteration: pass
print(*states)
"""


def test_the_team_runs_under_contention() -> None:
    run = subprocess.run([sys.executable, "-c", SWITCHED], capture_output=True, text=True)
    assert run.stdout == "2 2 0 0 2\n", run.stderr
