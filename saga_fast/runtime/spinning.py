"""OpenMP's threads spin at barriers while this process has its cores to itself, and sleep while others want them.

A training step has hundreds of short parallel regions. At the end of each GNU's OpenMP, torch's on Linux, spins for
milliseconds: alone that makes a small network 13 to 19 % faster. Where another process wants the core too, the spinning
thread holds the core that the thread it waits for would need, and a run falls far below its share
(benchmarks/bench_busy.py).

The library reads its wait policy once. But while it manages more threads than there are cores, it spins for less than a
thousandth of the time (``gomp_throttled_spin_count_var``). So a team of idle threads switches it, at any time, and
computes nothing else.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PERIOD = 0.5
"""Seconds between two looks at the cores."""
WANTED = 0.25
"""Cores that other processes use before the threads sleep; they spin again below half of it."""
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
MAPS, STAT = Path("/proc/self/maps"), Path("/proc/stat")


def watch_cores(environment: Mapping[str, str] = os.environ) -> None:
    """Start a thread that lets OpenMP's threads sleep while other processes want the cores of this one.

    Not where the user has chosen a wait policy, nor on other systems than Linux.
    """
    if sys.platform == "linux" and not any(name in environment for name in POLICIES):
        threading.Thread(target=_watch, name="saga-fast-cores", daemon=True).start()


def _watch() -> None:
    cores = os.sched_getaffinity(0)
    team, before = IdleTeam(len(cores) + 1), _Usage.now(cores)
    while True:
        time.sleep(PERIOD)
        now = _Usage.now(cores)
        wanted, before = now.of_others_since(before), now
        if is_contended(wanted, len(cores), sleeping=team.is_there):
            team.start()
        else:
            team.end()


def is_contended(wanted: float, cores: int, *, sleeping: bool) -> bool:
    """Whether other processes, which use ``wanted`` cores, take some from torch's threads."""
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return count is not None and wanted > (WANTED / 2 if sleeping else WANTED) and count() + wanted > cores


class _Usage(NamedTuple):
    """Seconds at one time: of the clock, of the cores' work, and of this process's."""

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls, cores: set[int]) -> _Usage:
        return cls(time.monotonic(), busy_seconds(cores), time.process_time())

    def of_others_since(self, before: _Usage) -> float:
        """Cores that other processes have used on average."""
        return (self.busy - before.busy - (self.own - before.own)) / (self.clock - before.clock)


def busy_seconds(cores: set[int]) -> float:
    """Seconds that these cores have worked since the machine started, or that another guest has had them."""
    total = 0
    for line in STAT.read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            total += user + nice + system + irq + softirq + steal
    return total / os.sysconf("SC_CLK_TCK")


class IdleTeam:
    """A team of ``size`` OpenMP threads that do nothing; it is there from :meth:`start` to :meth:`end`.

    Attributes:
        is_there: whether it was started.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """Start the team, if it is not there."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="saga-fast-idle-team", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """End it, if it is there. A team ends with the thread that started it."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # each thread calls free(NULL)
        for library in openmp_libraries():
            ctypes.CDLL(library).GOMP_parallel(nothing, None, ctypes.c_uint(self._size), ctypes.c_uint(0))
        self._ended.wait()


def openmp_libraries() -> list[str]:
    """The files of GNU's OpenMP that this process has loaded."""
    lines = MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
    return sorted(path for path in paths if Path(path).name.startswith("libgomp") and Path(path).is_file())
