"""Disks that fill up while checkpoints, tables, figures and packs are written, and that have space again afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from run_folders import assert_same_run

from benchmarks.torture.experiment import Undisturbed, make_images, train
from benchmarks.torture.processes import Ended, command, warm_up
from saga_fast.profile.figures import Row
from saga_fast.train.folder import LOCK


def can_mount() -> bool:
    """Whether small file systems can be mounted, which needs root; file size limits replace them otherwise."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    try:
        with disk(Path("/tmp") / f".can-mount-{os.getpid()}", 2**20):
            return True
    except subprocess.CalledProcessError:
        return False


def fill_train(experiment: Undisturbed, folder: Path, *, faults: int, seed: int = 0) -> Row:
    """Train on a disk that is too small, several times with a little more space, then with enough.

    Raises:
        AssertionError: not one line and exit code 2, an earlier file damaged, or a run with another result.
    """
    small, log = folder / "small", folder / "log.txt"
    written = sum(path.stat().st_size for path in experiment.run.rglob("*") if path.is_file())
    largest = (experiment.run / "last.pt").stat().st_size
    rng, made, compared = np.random.default_rng(seed), 0, 0
    while made < faults:
        with disk(small, 2**16) as place:
            # Less than is needed, written + largest: a checkpoint replaces another only when it is complete.
            for size in sorted(rng.integers(2**16, int(written + 0.9 * largest), 3).tolist()):
                place.resize(size)
                before = _content(small / "run")
                ended = train(experiment.config, small / "run", log)
                if ended.code != 0:
                    _check_refused(ended)
                    _check_unharmed(before, small / "run")
                    made += 1
            place.resize(2 * (written + 4 * largest))
            ended = train(experiment.config, small / "run", log)
            assert ended.code == 0, ended
            assert_same_run(small / "run", experiment.run)
            compared += 1
    return {"name": "disk full, train", "faults": made, "survived": made, "data_lost": 0, "runs_compared": compared}


def limit_train(experiment: Undisturbed, folder: Path, *, faults: int, seed: int = 0) -> Row:
    """Train where no file may grow beyond a limit, as on a disk that fills up while it is written; needs no root.

    Raises:
        AssertionError: see :func:`fill_train`.
    """
    run, log = folder / "run", folder / "log.txt"
    largest = (experiment.run / "last.pt").stat().st_size
    rng = np.random.default_rng(seed)
    for number in range(faults):
        before = _content(run)
        limit = int(rng.integers(100, largest)) if number else 1000
        _check_refused(train(experiment.config, run, log, prepare=partial(_limit, limit)))
        _check_unharmed(before, run)
    ended = train(experiment.config, run, log)
    assert ended.code == 0, ended
    assert_same_run(run, experiment.run)
    return {"name": "file size limit, train", "faults": faults, "survived": faults, "data_lost": 0, "runs_compared": 1}


def limit_pack(folder: Path, *, faults: int, seed: int = 0) -> Row:
    """Pack over an existing file where no file may grow beyond a limit: the old one must stay as it is.

    Raises:
        AssertionError: see :func:`fill_train`.
    """
    data, log, out = make_images(folder / "some"), folder / "log.txt", folder / "x.beton"
    warm_up(log)
    arguments = ["pack", str(data), str(out), "--max-bad-fraction", "0.1", "--force"]
    ended = command(arguments, log)
    assert ended.code == 0, ended
    before, rng = _content(folder), np.random.default_rng(seed)
    for _ in range(faults):
        limit = int(rng.integers(1, out.stat().st_size))
        _check_refused(command([*arguments, "--mode", "raw"], log, prepare=partial(_limit, limit)))
        after = _content(folder)
        assert {name: data for name, data in after.items() if name != "log.txt"} == {
            name: data for name, data in before.items() if name != "log.txt"
        }
    return {"name": "file size limit, pack", "faults": faults, "survived": faults, "data_lost": 0}


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    """A small file system, mounted at ``folder`` within the block."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
        try:
            yield Disk(folder)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


class Disk:
    """A mounted file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resize(self, size: int) -> None:
        """Change its size, bytes."""
        self._remount(f"size={size}")

    def protect(self) -> None:
        """Make it read-only."""
        self._remount("ro")

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self._folder)], check=True)


def _content(folder: Path) -> dict[str, bytes]:
    files = folder.rglob("*") if folder.exists() else ()
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


def _check_refused(ended: Ended) -> None:
    errors = [line for line in ended.text.splitlines() if line.startswith("saga-fast: error:")]
    assert ended.code == 2 and len(errors) == 1, ended
    assert "Traceback" not in ended.text, ended
    assert "No space left" in errors[0] or "File too large" in errors[0], ended


def _check_unharmed(before: dict[str, bytes], folder: Path) -> None:
    """Files are unchanged, or whole and newer, except for the run's lock; there is no temporary file."""
    from saga_fast.checkpoint import read_checkpoint
    from saga_fast.loaders import BoxTable

    after = _content(folder)
    assert before.keys() - {LOCK} <= after.keys(), f"gone: {sorted(before.keys() - after.keys())}"
    assert not [name for name in after if name.endswith(".tmp")]
    for name in after:
        if name.endswith(".pt"):
            read_checkpoint(folder / name)
        if name.endswith(".safetensors"):
            BoxTable.open(folder / name)
