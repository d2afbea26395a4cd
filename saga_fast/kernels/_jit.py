"""Numba's decorators with types, and the one lock that parallel kernels share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numba.extending
import torch

Function = TypeVar("Function", bound=Callable[..., Any])

# Reassociation and contraction let LLVM vectorise sums; infinities and NaN keep their meaning, because the
# kernels test for them.
FAST_SUMS = {"reassoc", "contract"}


class _ParallelLock:
    """Held around every parallel kernel.

    Numba's fallback threading layer (workqueue) aborts the process when two Python threads start parallel kernels at
    once. A parallel kernel takes all cores anyway, so one at a time costs nothing.

    Numba's OpenMP layer calls ``omp_set_num_threads`` when it starts, and torch, which shares the OpenMP library, would
    compute with that many threads from then on, whatever it was told, and round differently. So torch is told again.

    TBB, on one core and started by another thread than the main one, waits for ever when the process ends. So one core
    gets workqueue, unless the environment names a layer.
    """

    def __init__(self) -> None:
        self._lock, self._started = threading.Lock(), False

    def __enter__(self) -> None:
        self._lock.acquire()
        if not self._started:
            settings: Any = numba.config
            if settings.NUMBA_NUM_THREADS == 1 and settings.THREADING_LAYER == "default":
                settings.THREADING_LAYER = "workqueue"
            threads = torch.get_num_threads()
            numba.get_num_threads()  # starts the layer
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            self._started = True

    def __exit__(self, *_: object) -> None:
        self._lock.release()


PARALLEL_LOCK = _ParallelLock()


def jit(
    *, parallel: bool = False, fastmath: bool | set[str] = False, inline: bool = False
) -> Callable[[Function], Function]:
    """``numba.njit`` with this package's defaults: compiled once per machine (cache) and run without the GIL.

    LLVM inlines everything (``forceinline``), so that a kernel is the same machine code in the process that compiles it
    and in those that load it. A call left in it would reach the callee's own compilation in the first process and the
    kernel's copy in the others, and the two may round differently.
    """
    options: dict[str, Any] = {"cache": True, "nogil": True, "fastmath": fastmath}
    options |= {"parallel": True} if parallel else {"forceinline": True}
    if inline:
        options["inline"] = "always"
    return cast(Callable[[Function], Function], numba.njit(**options))


def intrinsic(generator: Callable[..., Any]) -> Callable[..., Any]:
    """``numba.extending.intrinsic``, for instructions that Numba has no words for; literal integers arrive as such."""
    return cast(Callable[..., Any], numba.extending.intrinsic(prefer_literal=True)(generator))


prange = numba.prange
