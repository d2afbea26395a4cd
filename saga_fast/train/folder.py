"""The run folder: one process trains into it at a time, and nothing of somebody else's is overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_fast.errors import SagaError
from saga_fast.runtime.distributed import broadcast, is_main
from saga_fast.runtime.files import lock_file

LOCK = ".saga-fast.lock"
WRITTEN = ("config.yaml", "metrics.jsonl", "loggers.json", "bad_images.txt", "nonfinite.txt", "att")
"""Files and folders that a run writes, besides its checkpoints."""


@contextmanager
def run_folder(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Lock the folder for the length of the block, and return the path of its last.pt.

    A kill releases the lock, too. The lock's file also marks the folder of a run that was killed before its first
    checkpoint as ours.

    Raises:
        SagaError: the folder holds another run or files that no run of ours wrote, or another process trains into it.
    """
    last, lock, problem = folder / "last.pt", None, None
    is_new = not folder.exists()
    if is_main():
        problem = _problem(folder, last, resume=resume)
        if problem is None:
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_file(folder / LOCK)
            problem = f"another process trains into {folder}: choose another --out" if lock is None else None
    if (message := broadcast(problem)) is not None:
        raise SagaError(message)
    try:
        yield last
    finally:
        if lock is not None:
            written = [path for path in folder.iterdir() if path.name != LOCK]
            if last.exists() or not written:
                (folder / LOCK).unlink(missing_ok=True)
            if is_new and not written:  # refused before anything was trained
                folder.rmdir()
            lock.close()


def _problem(folder: Path, last: Path, *, resume: bool) -> str | None:
    if last.exists():
        return None if resume else f"{folder} holds a run already: go on with --resume, or choose another --out"
    foreign = [name for name in WRITTEN if (folder / name).exists()]
    if foreign and not (folder / LOCK).exists():
        return f"{folder} holds {', '.join(foreign)} of no run of saga-fast: choose another --out, or remove them"
    return None
