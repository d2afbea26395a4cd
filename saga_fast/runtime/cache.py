"""The folder for files that are made again when they are missing."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

from saga_fast.errors import SagaError

VARIABLE = "SAGA_FAST_CACHE"

log = logging.getLogger(__name__)
_said: set[Path] = set()


def cache_folder(name: str) -> Path:
    """A folder of this user for cached files, which exists: in ``$SAGA_FAST_CACHE``, or where caches are kept.

    Without either of ``$XDG_CACHE_HOME`` and a home folder that can be written, it lies in the temporary folder and is
    this user's alone; a warning says so once.

    Raises:
        SagaError: none of these folders can be written.
    """
    problems = []
    for base in _bases():
        folder = base / name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check(folder)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
            continue
        if base == _temporary() and not os.environ.get(VARIABLE):
            _warn_once(base, "; ".join(problems) or "there is no home folder")
        return folder
    raise SagaError(f"no folder for cached files ({'; '.join(problems)}): set {VARIABLE} to one")


def _bases() -> list[Path]:
    if os.environ.get(VARIABLE):
        return [Path(os.environ[VARIABLE]).expanduser()]
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [*([home / "saga-fast"] if home.is_absolute() else []), _temporary()]


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"saga-fast-{os.geteuid()}"


def _warn_once(base: Path, reason: str) -> None:
    """Warn of the temporary folder, which may lie in memory: the names of a billion images are 56 GB."""
    if base not in _said:
        _said.add(base)
        log.warning("cached files are kept in %s (%s): %s chooses another folder", base, reason, VARIABLE)


def _check(folder: Path) -> None:
    """
    Raises:
        OSError: the folder cannot be written, or it is somebody else's, who may put other files there.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError("it is not a folder of this user alone")
    with tempfile.TemporaryFile(dir=folder):
        return
