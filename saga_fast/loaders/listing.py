"""The rows of a data set: in memory, or for a large one in mapped files that all processes of a machine share."""

from __future__ import annotations

import hashlib
import json
import mmap
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.names import Names, encode_names
from saga_fast.runtime.cache import VARIABLE, cache_folder
from saga_fast.runtime.files import lock_file, locked, map_file, write_text

Columns = dict[str, npt.NDArray[Any]]
Rows = tuple[list[str], Columns]
"""Names and columns of some rows."""
Finish = Callable[[Columns], tuple[str, ...]]
"""Completes whole columns in place, and returns the classes."""

MAPPED_BYTES = 2**26
"""Listings above it are mapped. ImageNet's takes 60 MB."""
ABOUT = "listing.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Moment = tuple[str, float]
"""A start of a machine and seconds on its monotonic clock: setting the date does not move it."""


@dataclass(frozen=True)
class Listing:
    """The rows of a data set.

    Attributes:
        names: N names.
        columns: arrays of N numbers.
        classes: names of the classes.
        listed_elsewhere: whether a process that ran at the same time made it.
    """

    names: Names
    columns: Mapping[str, npt.NDArray[Any]]
    classes: tuple[str, ...]
    listed_elsewhere: bool = False

    def __len__(self) -> int:
        return len(self.names)


def make_listing(identity: str, blocks: Iterable[Rows], finish: Finish, *, version: str = "") -> Listing:
    """The rows of a data set, in the order of the blocks.

    Where they take more than MAPPED_BYTES, they are written to the cache folder and mapped. Of several processes that
    list the same data set at the same time, one goes on and the others wait for its files. The files stay until the
    data set is listed again.

    Args:
        identity: tells the data sets of a machine apart, for example a kind and an absolute path.
        blocks: rows; each block has the same columns.
        finish: called with the columns of all rows.
        version: of the data set, of which a process may see another at the same time; the last one is kept.

    Raises:
        SagaError: the files cannot be written. Errors of ``blocks`` and ``finish`` are raised as they are.
        ValueError: a name that holds a zero byte.
    """
    begun, encoded = _now(), _encoded(blocks)
    parts, size = [], 0
    for part in encoded:
        parts.append(part)
        size += sum(column.nbytes for column in part.values())
        if size > MAPPED_BYTES:
            return _mapped(identity, version, chain(parts, encoded), finish, begun)
    if not parts:
        return Listing(Names.of([]), {}, ())
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Listing(Names(columns["text"], columns["end"]), _without_names(columns), finish(_without_names(columns)))


def _encoded(blocks: Iterable[Rows]) -> Iterator[Columns]:
    """The blocks' columns, with their names as the columns of :class:`Names`."""
    base = 0
    for names, columns in blocks:
        text, ends = encode_names(names)
        yield {"text": text, "end": ends + base, **columns}
        base += len(text)


def _without_names(columns: Columns) -> Columns:
    return {name: column for name, column in columns.items() if name not in ("text", "end")}


def _mapped(identity: str, version: str, parts: Iterable[Columns], finish: Finish, begun: Moment) -> Listing:
    """
    Args:
        begun: a listing of this version that another process has finished later is taken instead.
    """
    # Machines that share a home each have a folder: replacing files that another machine has mapped breaks its map.
    key = hashlib.sha256(f"{platform.node()} {identity}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    base = cache_folder("listings")
    folder, lock = base / key, base / f"{key}.lock"
    with ExitStack() as stack:
        with _cache_errors(base):
            stack.enter_context(locked(lock))
            if (listing := _finished_since(begun, folder, version)) is not None:
                return listing
            if _refuses_others(lock):
                for leftover in base.glob(f".{key}.*"):  # of processes that were killed
                    shutil.rmtree(leftover, ignore_errors=True)
            # Where locks do not work, other processes write at the same time: each in a folder of its own.
            scratch = tempfile.TemporaryDirectory(prefix=f".{key}.", dir=base, ignore_cleanup_errors=True)
            new, old = Path(scratch.name) / "new", Path(scratch.name) / "old"
            stack.enter_context(scratch)
            new.mkdir()
        _write(base, new, parts, finish, version)
        with _cache_errors(base):
            listing = _read(new, _about(new))  # mapped, it keeps its content when another process replaces the files
            with suppress(FileNotFoundError):
                folder.rename(old)  # removing it in its place fails on NFS while a process has mapped it
            with suppress(OSError):  # without locks another process's may have come there meanwhile
                new.rename(folder)
        return listing


@contextmanager
def _cache_errors(base: Path) -> Iterator[None]:
    """
    Raises:
        SagaError: in place of the OSErrors of writing to the cache folder.
    """
    try:
        yield
    except OSError as error:
        raise SagaError(
            f"the names of a large data set cannot be kept in {base}: {error.strerror or error};"
            f" {VARIABLE} chooses another folder"
        ) from error


def _refuses_others(lock: Path) -> bool:
    """Whether the lock file, which this process holds, is really locked: some file systems have no locks."""
    second = lock_file(lock)
    if second is not None:
        second.close()
    return second is None


def _write(base: Path, folder: Path, parts: Iterable[Columns], finish: Finish, version: str) -> None:
    """
    Raises:
        SagaError: the files cannot be written.
    """
    files: dict[str, FileIO] = {}
    types: dict[str, str] = {}
    lengths: dict[str, int] = {}
    digest = hashlib.sha256()
    with ExitStack() as stack:
        for part in parts:
            digest.update(part["text"].data)
            with _cache_errors(base):
                for name, column in part.items():
                    if name not in files:
                        # Without a buffer, closing does not write, and so does not fail a second time on a full disk.
                        files[name] = stack.enter_context((folder / name).open("wb", buffering=0))
                        types[name], lengths[name] = column.dtype.str, 0
                    _append(files[name], column)
                    lengths[name] += len(column)
    with _cache_errors(base):
        columns: Columns = {name: np.memmap(folder / name, dtype, mode="r+") for name, dtype in types.items()}
    classes = finish(_without_names(columns))
    about = {"types": types, "lengths": lengths, "classes": classes, "sha256": digest.hexdigest()}
    about |= {"version": version, "finished": _now()}
    with _cache_errors(base):
        write_text(folder / ABOUT, json.dumps(about))  # synced, before the folder gets its name


def _append(file: FileIO, column: npt.NDArray[Any]) -> None:
    data = np.ascontiguousarray(column).view(np.uint8).data
    while data:
        data = data[file.write(data) :]  # at most 2 GB at a time


def _now() -> Moment:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip(), time.monotonic()
    except OSError:  # not Linux: a start that equals no other, so that no process takes another's listing
        return uuid.uuid4().hex, time.monotonic()


def _finished_since(begun: Moment, folder: Path, version: str) -> Listing | None:
    """The listing in a folder, if a process of this machine has finished it after ``begun``; None if it is damaged."""
    try:
        about = _about(folder)
        start, seconds = about["finished"]
        if start != begun[0] or seconds < begun[1] or about["version"] != version:
            return None
        listing = _read(folder, about, listed_elsewhere=True)
        # Without locks the folder may be replaced between two columns; the moment differs then.
        return listing if _about(folder) == about else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return about


def _read(folder: Path, about: Mapping[str, Any], *, listed_elsewhere: bool = False) -> Listing:
    """
    Raises:
        OSError, ValueError, KeyError, TypeError: a column is missing or damaged.
    """
    columns: Columns = {}
    for name, dtype in about["types"].items():
        columns[name] = _map(folder / name, dtype, writable=name not in ("text", "end"))
        if len(columns[name]) != about["lengths"][name]:
            raise ValueError(f"{folder / name} holds {len(columns[name])} numbers, not {about['lengths'][name]}")
    names = Names(columns["text"], columns["end"], about["sha256"])
    return Listing(names, _without_names(columns), tuple(about["classes"]), listed_elsewhere)


def _map(path: Path, dtype: str, *, writable: bool) -> npt.NDArray[Any]:
    memory = map_file(path, writable=writable)
    memory.madvise(mmap.MADV_RANDOM)  # otherwise shuffled reads of single rows read 128 kB each
    return np.frombuffer(memory, dtype)
