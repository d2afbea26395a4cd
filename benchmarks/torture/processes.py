"""Processes that may die: commands in children that start at once, and fuzzing in interpreters of their own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, negative for a signal.
        text: what it wrote to stdout and stderr.
        seconds: from its start.
    """

    code: int
    text: str
    seconds: float


def command(
    arguments: list[str], log: Path, *, kill_after: float | None = None, prepare: Callable[[], None] | None = None
) -> Ended:
    """``saga-fast ARGUMENTS`` in a process of its own.

    Args:
        arguments: see above.
        log: the file that takes what it writes.
        kill_after: seconds after which it gets SIGKILL, unless it has ended.
        prepare: called in the process first.

    Raises:
        TimeoutError: it ran for LIMIT_SECONDS.
    """
    process = _context().Process(target=_child, args=(arguments, str(log), prepare))
    begin = time.perf_counter()
    process.start()
    process.join(LIMIT_SECONDS if kill_after is None else kill_after)
    hung = process.is_alive() and kill_after is None
    if process.is_alive():
        process.kill()
        process.join()
    if hung:
        raise TimeoutError(f"{' '.join(arguments)} ran for {LIMIT_SECONDS:g} s: {log.read_text()}")
    assert process.exitcode is not None
    text = log.read_text(errors="replace") if log.exists() else ""
    return Ended(process.exitcode, text, time.perf_counter() - begin)


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["saga_fast.cli", "saga_fast.loaders.ffcv.pack", "timm"])
    return context


def warm_up(log: Path) -> None:
    """Start the process that others are forked from, which imports for seconds."""
    command(["--version"], log)


def _child(arguments: list[str], log: str, prepare: Callable[[], None] | None) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    import torch
    from tqdm import tqdm

    from saga_fast.cli import main

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a killed process leaves behind
    torch.set_num_threads(1)  # sums in another number of threads may round differently
    if prepare is not None:
        prepare()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
