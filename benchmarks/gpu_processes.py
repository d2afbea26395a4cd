"""Sections of ``gpu.py`` in processes: a hang, or an illegal memory access, ends one section and no other.

The processes are forked from a server that has imported everything and never uses the device, so that a section starts
within a second. Each leads a process group, which is killed when the section's time is over, and at its end.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from pickle import UnpicklingError

import torch

from benchmarks.gpu_timing import Bench
from saga_fast.profile.figures import Row

MEASURING = 0.85
"""Fraction of a section's limit after which no measurement begins."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A section to run in a process.

    Attributes:
        name: the section's.
        run: yields its rows.
        limit: seconds after which it is killed.
        device: name of the torch device.
        small, seed, dry: see :class:`Bench`. The rows of a dry run are dropped.
        scratch: folder for its temporary files, removed by the caller.
    """

    name: str
    run: Callable[[Bench], Iterator[Row]]
    limit: float
    device: str
    small: bool
    seed: int
    scratch: Path
    dry: bool = False

    @property
    def title(self) -> str:
        """The name in messages."""
        return f"{self.name} (compiling)" if self.dry else self.name


@dataclass(frozen=True)
class _Started:
    job: Job
    process: ForkServerProcess
    begin: float

    @property
    def left(self) -> float:
        """Seconds until it is killed."""
        return self.begin + self.job.limit - time.monotonic()


def server_context() -> ForkServerContext:
    """The context of the processes; its server imports what the sections need."""
    # Otherwise asking whether there is a GPU would initialise CUDA in the process that asks.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu"])
    return context


def run_jobs(context: ForkServerContext, jobs: Sequence[Job], *, at_once: int) -> Iterator[Row]:
    """The rows of all jobs as they come; an error, or the end of its time, is a job's last row.

    Args:
        context: from :func:`server_context`.
        jobs: run in this order.
        at_once: number of processes.
    """
    waiting, running = list(jobs), dict[Connection, _Started]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                reader, started = _start(context, waiting.pop(0))
                running[reader] = started
            ready = connection.wait(list(running), timeout=max(0.0, min(each.left for each in running.values())))
            for reader, started in list(running.items()):
                row = _receive(reader) if reader in ready else None
                if row and not started.job.dry:
                    yield row | {"section": started.job.name}
                if (reader in ready and not row) or started.left <= 0.0:
                    del running[reader]
                    yield from _ended(reader, started, finished=row == {})
    finally:
        for started in running.values():
            _kill(started.process)


def _start(context: ForkServerContext, job: Job) -> tuple[Connection, _Started]:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run_section, args=(job, writer), daemon=False)
    process.start()
    writer.close()  # the reader then sees the end of the section's process
    return reader, _Started(job, process, time.monotonic())


def _receive(reader: Connection) -> Row | None:
    """A row, an empty one at the section's end, or None if the process has died."""
    try:
        row: Row = reader.recv()
    except (EOFError, OSError, UnpicklingError):
        return None
    return row


def _ended(reader: Connection, started: _Started, *, finished: bool) -> Iterator[Row]:
    """The row of a process that was killed or died, none for a finished section."""
    job, process = started.job, started.process
    over = started.left <= 0.0
    process.join(2.0 if finished or not over else 0.0)  # after a device's error, exiting may hang
    code = process.exitcode
    _kill(process)
    reader.close()
    print(f"{job.title}: {time.monotonic() - started.begin:.1f} s", file=sys.stderr, flush=True)
    if not finished:
        error = f"killed after {job.limit:g} s" if over else f"the process ended with {code}"
        if job.dry:
            print(f"{job.title}: {error}", file=sys.stderr, flush=True)
        else:
            yield {"name": f"section {job.name}", "error": error, "section": job.name}


def _kill(process: ForkServerProcess) -> None:
    """Kill the section's process group, which may have outlived the process."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # it has not made its group yet, or all of it has ended
    process.join(5.0)


def _run_section(job: Job, writer: Connection) -> None:
    """Send the section's rows; an error is the last one."""
    os.setsid()
    tempfile.tempdir = str(job.scratch)
    begin = time.monotonic()
    try:
        bench = Bench(torch.device(job.device), job.small, job.seed, dry=job.dry)
        if not job.small:
            bench.deadline = begin + MEASURING * job.limit
        for row in job.run(bench):
            writer.send(row)
        if bench.cuda:
            torch.cuda.synchronize()  # a kernel's error is this section's
    except Exception as error:  # of any machine or driver: the remaining sections still run
        traceback.print_exc()
        reason = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
        writer.send({"name": f"section {job.name}", "error": reason, "traceback": traceback.format_exc()})
    writer.send({})
