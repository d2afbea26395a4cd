"""Files are written whole or not at all, and only regular files are read."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; the file written there replaces ``path`` if the block succeeds.

    The data is on the disk before the name changes, so a crash at any moment leaves the old file or the new one. The
    temporary files of killed processes are removed; a lock tells them from those that a running process is writing.

    A symbolic link stays a link, and the file that it leads to is replaced. Into a device, a FIFO, and the file that is
    this process's stdout or stderr, the bytes are written after the block.

    Raises:
        OSError: the folder cannot be written or the disk is full; ``path`` is as it was.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "content"
            with named(path), (Path(folder) / "content").open("rb") as content, _open_stream(path) as stream:
                shutil.copyfileobj(content, stream)
        return
    path = _target(path)
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


def is_stream(path: Path) -> bool:
    """Whether ``path`` is a device, a FIFO, a socket, or our stdout or stderr: written into, not replaced."""
    try:
        status = path.stat()
    except OSError:
        return False
    special = not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)
    return special or _standard_handle(status) is not None


def lock_file(path: Path) -> IO[bytes] | None:
    """The open, locked file ``path``, which is made if it is missing; None if another process holds the lock.

    The lock ends when the file is closed or the process ends, also by a kill. A file system without locks refuses
    nobody. The holder may remove the file before it closes it.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)  # noqa: PTH123, SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # no locks here
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # between its opening and its locking the holder removed it


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the block, after waiting for other threads and processes that do.

    Raises:
        OSError: the file cannot be made.
    """
    while (lock := lock_file(path)) is None:
        time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def map_file(path: Path, *, writable: bool = False) -> mmap.mmap:
    """A file as memory, whose pages processes share.

    Args:
        writable: PyTorch warns of arrays that are not. The file is not changed: a process copies the pages that it
            writes to.
    """
    with path.open("rb") as file:
        if not writable:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # MAP_NORESERVE, which Python 3.11 has no name for: Linux refuses other maps that are larger than the memory.
        flags = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
        return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file. FIFOs and devices, which could block or never end, are refused.

    Raises:
        OSError: no such file, not a regular one, one of more than ``limit`` bytes, or one that cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are more than {limit}", str(path))
        # A file object takes three calls more, and each of them gives up Python's lock, which other threads then hold.
        data = os.read(handle, status.st_size)
        while len(data) < status.st_size and (more := os.read(handle, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add ``path`` to the OSErrors of the block: errors of writing to an open file do not name it.

    Raises:
        OSError: as in the block, also where ``torch.save`` made a RuntimeError of it.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error


def check_writable(path: Path) -> None:
    """Check that ``path`` can be written, before hours of work and not after.

    Raises:
        OSError: the folder cannot be made or written.
    """
    if is_stream(path):
        return  # a FIFO without a reader would block
    path = _target(path)
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


def _target(path: Path) -> Path:
    """The file that a symbolic link leads to, which may be missing; any other path itself.

    Raises:
        OSError: the link leads to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _standard_handle(status: os.stat_result) -> int | None:
    """1 or 2 if that handle of this process is open on the file, else None."""
    for handle in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), status):
                return handle
    return None


def _open_stream(path: Path) -> IO[bytes]:
    """``path``, opened for writing: stdout and stderr at their current position, after what was printed."""
    handle = _standard_handle(path.stat())
    if handle is None:
        return path.open("wb")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return open(os.dup(handle), "wb")  # noqa: PTH123 - of a handle


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
            # On NFS the lock needs a file that is open for writing.
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
