"""The processor cores that this process gets, and how many threads it starts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def configure_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Start no more of OpenMP's threads than there are cores, and let them share these with other processes.

    Call it before torch is imported. Values that the user has set are kept. Torch counts a machine's cores where a
    container's quota grants fewer; threads that spin at a barrier would use up the quota.
    """
    environment.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's OpenMP, whose threads always sleep
    quota = _quota(CGROUP)
    if quota is not None and quota < _affinity():
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if (cores := usable_cores()) < _affinity():
        environment.setdefault("OMP_NUM_THREADS", str(cores))
        environment.setdefault("NUMBA_NUM_THREADS", str(cores))


def end_pool(pool: ThreadPoolExecutor) -> None:
    """End a pool's threads: tasks that have not begun are dropped, and those in progress are waited for.

    A generator that Python closes while it exits has no threads left, nor the modules that ending them needs.
    """
    if not sys.is_finalizing():
        pool.shutdown(wait=True, cancel_futures=True)


def usable_cores(root: Path = CGROUP) -> int:
    """The number of cores that this process may use: fewer than the machine's under taskset or in a container.

    The quota of a container's control group counts, rounded up: threads beyond it would only be throttled.
    """
    quota = _quota(root)
    return _affinity() if quota is None else max(1, min(_affinity(), math.ceil(quota)))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """The cores' worth of time that the control group grants, version 2 or 1; None where it is not limited."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 < period_us else None
