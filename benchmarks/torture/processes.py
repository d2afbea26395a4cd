"""Processes that may be killed: forked from one that has imported everything, so that they start at once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from saga_fast.cli import COMMANDS

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Ended:
    """The end of a command.

    Attributes:
        code: its exit code, negative for a signal.
        text: its stdout and stderr.
        seconds: since its start.
    """

    code: int
    text: str
    seconds: float


def command(
    arguments: list[str], log: Path, *, kill_after: float | None = None, prepare: Callable[[], None] | None = None
) -> Ended:
    """``saga-fast ARGUMENTS`` in a separate process, see :func:`call`; ``prepare`` is called there first."""
    return call(partial(_main, arguments, prepare), log, kill_after=kill_after)


def call(
    function: Callable[[], int], log: Path, *, kill_after: float | None = None, limit: float = LIMIT_SECONDS
) -> Ended:
    """A function in a separate process, whose exit code is the function's value, or 1 if it raises.

    Args:
        function: a picklable function.
        log: the file for its stdout and stderr.
        kill_after: seconds after which it gets SIGKILL, unless it has ended.
        limit: seconds after which it counts as hung.

    Raises:
        TimeoutError: it hung.
    """
    begin = time.perf_counter()
    return _end(_start(function, log), log, begin, kill_after=kill_after, limit=limit)


def together(
    arguments: list[str],
    logs: list[Path],
    *,
    kill_after: float | None = None,
    victim: int = 0,
    prepare: Callable[[], None],
) -> list[Ended]:
    """``saga-fast ARGUMENTS`` in one process per log, started as by torchrun, and ended with SIGTERM when one fails.

    Args:
        arguments, kill_after, prepare: see :func:`command`; only one process is killed.
        logs: the file of each rank's stdout and stderr.
        victim: the rank of the killed process.

    Raises:
        TimeoutError: one of them hung.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.perf_counter()
    processes = []
    for rank, log in enumerate(logs):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(logs), "MASTER_PORT": port}
        environment = {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        processes.append(_start(partial(_main, arguments, partial(_prepare_rank, environment, prepare)), log))
    first = _end(processes[victim], logs[victim], begin, kill_after=kill_after)
    for process in processes:
        if first.code != 0:
            process.terminate()
    return [first if rank == victim else _end(process, logs[rank], begin) for rank, process in enumerate(processes)]


def _prepare_rank(environment: dict[str, str], prepare: Callable[[], None]) -> None:
    os.environ.update(environment)
    prepare()


def _start(function: Callable[[], int], log: Path) -> ForkServerProcess:
    process = _context().Process(target=_child, args=(function, str(log)))
    process.start()
    return process


def _end(
    process: ForkServerProcess,
    log: Path,
    begin: float,
    *,
    kill_after: float | None = None,
    limit: float = LIMIT_SECONDS,
) -> Ended:
    process.join(limit if kill_after is None else kill_after)
    hung = process.is_alive() and kill_after is None
    if process.is_alive():
        process.kill()
        process.join()
    text = log.read_text(errors="replace") if log.exists() else ""
    if hung:
        raise TimeoutError(f"a process ran for {limit:g} s: {text}")
    assert process.exitcode is not None
    return Ended(process.exitcode, text, time.perf_counter() - begin)


def warm_up(log: Path) -> None:
    """Start the process from which the commands are forked; its imports take seconds."""
    command(["--version"], log)


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    commands = [f"saga_fast.cli.{name}" for name in COMMANDS]
    context.set_forkserver_preload([*commands, "saga_fast.loaders.ffcv.pack", "timm"])
    return context


def _main(arguments: list[str], prepare: Callable[[], None] | None) -> int:
    from saga_fast.cli import main

    if prepare is not None:
        prepare()
    return main(arguments)


def _child(function: Callable[[], int], log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a system semaphore, which a killed process leaves behind
    torch.set_num_threads(1)  # sums in another number of threads may round differently
    code = function()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
