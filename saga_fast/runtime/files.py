"""Files are written whole or not at all, and only regular files are read."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; the file written there replaces ``path`` if the block succeeds.

    The data is on the disk before the name changes, so a crash at any moment leaves the old file or the new one. The
    temporary files of killed processes are removed; a lock tells them from those that a running process is writing.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    handle, temporary = _make_locked(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file. FIFOs and devices, which could block or never end, are refused.

    Raises:
        OSError: no such file, not a regular one, one of more than ``limit`` bytes, or one that cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - of a handle
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are more than {limit}", str(path))
        return file.read()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add ``path`` to the OSErrors of the block: errors of writing to an open file do not name it.

    Raises:
        OSError: as in the block.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_writable(path: Path) -> None:
    """Check that ``path`` can be written, before hours of work and not after.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        return


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. File names in it that are not UTF-8 are written as their bytes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_locked(path: Path) -> tuple[int, Path]:
    """A locked handle of an empty temporary file in the folder of ``path``, and its path."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        if not _lock(handle, wait=True) or temporary.exists():
            return handle, temporary
        os.close(handle)  # between its making and its locking another process took it for a leftover


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of ``path`` whose writers have ended: a lock ends with its process."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for leftover in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
        try:
            # NFS makes of this lock one that takes a file open for writing.
            handle = os.open(leftover, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, a link, or somebody else's
            continue
        try:
            if stat.S_ISREG(os.fstat(handle).st_mode) and _lock(handle, wait=False):
                leftover.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the file could be locked: not if another process holds it or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
