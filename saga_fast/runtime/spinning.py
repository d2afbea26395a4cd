"""OpenMP's threads spin at barriers while this process has its cores to itself, and sleep under contention.

A training step has hundreds of short parallel regions. At the end of each, GNU's OpenMP, torch's on Linux, spins for
milliseconds, which is the faster way alone. Where another process wants the core too, the spinning thread holds the
core that the thread it waits for would need, and a run falls far below its share (benchmarks/bench_busy.py).

The library reads its wait policy once. But while it manages more threads than it found cores, it spins for less than a
thousandth of the time (``gomp_throttled_spin_count_var`` in its config/linux/wait.h). So a few idle threads switch it,
at any time, and results stay the same to the bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import NamedTuple

PERIOD = 0.5
"""Seconds between two measurements of the cores."""
CONTENTION = 0.25
"""Cores used by other processes above which the threads sleep; below half of it they spin again."""
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
MAPS, STAT = Path("/proc/self/maps"), Path("/proc/stat")
THREAD_NAME = "saga-fast-spinning"


def adapt_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Start a thread that measures contention and switches the spinning of OpenMP's threads. Once per process.

    Call it before torch is imported. A wait policy that the user has set is kept. Where the use of the cores cannot be
    measured, the threads always sleep; on other systems than Linux nothing is changed.
    """
    if sys.platform != "linux" or any(name in environment for name in POLICIES):
        return
    cores = os.sched_getaffinity(0)
    try:
        busy_seconds(cores)
    except (OSError, ValueError):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        return
    if all(thread.name != THREAD_NAME for thread in threading.enumerate()):
        threading.Thread(target=_adapt, args=(cores,), name=THREAD_NAME, daemon=True).start()


def _adapt(cores: set[int]) -> None:
    team, before = IdleTeam(), _Usage.now(cores)
    while True:
        time.sleep(PERIOD)
        now = _Usage.now(cores)
        used, before = now.by_other_processes(before), now
        threads = _torch_threads()
        if is_contended(used, threads, len(cores), sleeping=team.is_running):
            team.start(max(2, len(cores) - threads + 2))  # with torch's, one thread more than there are cores
        else:
            team.end()


def _torch_threads() -> int:
    """The number of torch's threads; 0 before torch is imported."""
    count: Callable[[], int] | None = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return 0 if count is None else count()


def is_contended(used: float, threads: int, cores: int, *, sleeping: bool) -> bool:
    """Whether other processes, which use ``used`` cores, take some from torch's threads; one thread has no barriers."""
    return threads > 1 and used > (CONTENTION / 2 if sleeping else CONTENTION) and threads + used > cores


class _Usage(NamedTuple):
    """Seconds of the clock, of work on the cores, and of this process's work."""

    clock: float
    work: float
    process: float

    @classmethod
    def now(cls, cores: set[int]) -> _Usage:
        return cls(time.monotonic(), busy_seconds(cores), time.process_time())

    def by_other_processes(self, before: _Usage) -> float:
        """Cores that other processes have used since ``before``, on average."""
        return (self.work - before.work - (self.process - before.process)) / (self.clock - before.clock)


def busy_seconds(cores: set[int]) -> float:
    """Seconds that these cores have worked since the machine started, or that another virtual machine has had them.

    Raises:
        OSError: the system does not say.
        ValueError: it does not say it of these cores.
    """
    ticks = []
    for line in STAT.read_text(encoding="ascii").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
            ticks.append(user + nice + system + irq + softirq + steal)
    if len(ticks) < len(cores) or not any(ticks):
        raise ValueError(f"{STAT} has no figures of cores {sorted(cores)}")
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


class IdleTeam:
    """A team of OpenMP threads that do nothing.

    Attributes:
        is_running: whether it was started and not ended.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def start(self, size: int) -> None:
        """Start ``size`` threads, at least 2, if none are running. Nothing happens where threads cannot be started."""
        if self._thread is None:
            self._ended.clear()
            thread = threading.Thread(target=self._run, args=(size,), name="saga-fast-idle-team", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the limit of threads is reached, at which OpenMP would end the process
                return
            self._thread = thread

    def end(self) -> None:
        """End the threads, if they are running: OpenMP's end with the thread that started them."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def _run(self, size: int) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # each thread calls free(NULL)
        for library in openmp_libraries():
            ctypes.CDLL(library).GOMP_parallel(nothing, None, ctypes.c_uint(size), ctypes.c_uint(0))
        self._ended.wait()


def openmp_libraries() -> list[str]:
    """The files of GNU's OpenMP that this process has loaded."""
    lines = MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
    return sorted(path for path in paths if Path(path).name.startswith("libgomp") and Path(path).is_file())
