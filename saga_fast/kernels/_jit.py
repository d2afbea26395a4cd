"""Typed Numba decorators, and the lock that all parallel kernels share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numba.extending
import torch

from saga_fast.errors import SagaError
from saga_fast.kernels._cache import cache_of

Function = TypeVar("Function", bound=Callable[..., Any])

if cast(Any, numba.config).DISABLE_JIT:
    raise SagaError("NUMBA_DISABLE_JIT is set: the kernels need Numba's compiler; unset it")

# Reassociation and contraction let LLVM vectorise sums. The flags that assume no infinities and no NaN stay off,
# because the kernels test for both.
FAST_SUMS = {"reassoc", "contract"}


class _ParallelLock:
    """Lock to hold around every parallel kernel.

    Numba's fallback threading layer (workqueue) aborts the process when two Python threads run parallel kernels at the
    same time. A parallel kernel uses all cores anyway, so running one at a time costs nothing.

    Numba's OpenMP layer calls ``omp_set_num_threads`` when it starts. torch shares the OpenMP library: it would compute
    with that many threads from then on and round differently. So torch's number of threads is restored.

    On one core, TBB hangs at process exit if a thread other than the main one started it. So one core gets workqueue,
    unless the environment names a layer.
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
    """``numba.njit`` with this package's defaults: cached on disk and run without the GIL.

    LLVM inlines everything (``forceinline``), so a kernel has the same machine code in the process that compiles it and
    in those that load it from the cache. A call that is not inlined would reach the separately compiled callee in the
    first process and the copy inside the cached kernel later, and the two may round differently.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath}
    options |= {"parallel": True} if parallel else {"forceinline": True}
    if inline:
        options["inline"] = "always"

    def decorate(function: Function) -> Function:
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = cache_of(function)
        return cast(Function, dispatcher)

    return decorate


def intrinsic(generator: Callable[..., Any]) -> Callable[..., Any]:
    """``numba.extending.intrinsic`` that passes literal integers as literal types."""
    return cast(Callable[..., Any], numba.extending.intrinsic(prefer_literal=True)(generator))


prange = numba.prange
