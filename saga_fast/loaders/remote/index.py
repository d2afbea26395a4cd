"""The members of shards at addresses: found with ranged reads, and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Generator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Event

from saga_fast.errors import SagaError
from saga_fast.loaders.remote.in_order import in_order
from saga_fast.loaders.remote.signed import unsigned
from saga_fast.loaders.remote.store import Stat, store_of
from saga_fast.loaders.shards import Member, members, one_line_errors
from saga_fast.runtime.address import public_address
from saga_fast.runtime.cache import cache_folder
from saga_fast.runtime.files import locked, write_text

BLOCK = 2**20
"""Bytes of a request for headers: they take about as long as its round trip. Larger members are skipped."""
THREADS = 16
"""Shards that are read at once."""

log = logging.getLogger(__name__)


def members_of_all(addresses: Sequence[str], stats: Sequence[Stat]) -> Generator[list[Member]]:
    """The images of each shard, from the kept index or from the shard's headers: those of 2 * THREADS are in memory.

    A kept index is used only for the size and version that it was made of, and replaced when the shard has another;
    that of a file without a version is not kept. Processes of a machine that want the same one wait for the first.

    Raises:
        SagaError: not a tar, one that is cut, one that cannot be read, or a label that is no number.
    """
    jobs = list(zip(addresses, stats, strict=True))
    return in_order(_members, jobs, threads=THREADS, name="index", unit="shards")


def _members(job: tuple[str, Stat], stopped: Event) -> list[Member]:
    address, stat = job
    entry = _entry(address, stat)
    if entry is None:
        return _read_headers(address, stat, stopped)
    found = _load(entry, stat)
    if found is not None:
        return found
    try:
        with locked(entry.with_suffix(".lock")):
            found = _load(entry, stat)  # another process may have made it meanwhile
            if found is None:
                found = _read_headers(address, stat, stopped)
                write_text(entry, json.dumps({**asdict(stat), "images": found}))
    except OSError as error:
        _say_once(f"the index of remote shards is not kept in {entry.parent}: {error.strerror or error}")
    return _read_headers(address, stat, stopped) if found is None else found


def _read_headers(address: str, stat: Stat, stopped: Event) -> list[Member]:
    remote = _RemoteFile(address, stat.size, stopped)
    with one_line_errors(public_address(address)), io.BufferedReader(remote, BLOCK) as file:
        return list(members(file, public_address(address)))


def _entry(address: str, stat: Stat) -> Path | None:
    """The file of a shard's index; None where there is no cache folder, or nothing tells the shard from its next."""
    if not stat.version:
        return None
    try:
        folder = cache_folder("index")
    except SagaError as error:
        _say_once(f"the index of remote shards is not kept: {error}")
        return None
    key = hashlib.sha256(unsigned(address).encode()).hexdigest()
    return folder / f"{key[:32]}.json"


def _load(entry: Path, stat: Stat) -> list[Member] | None:
    """The members in a file; None if it is missing, of another version of the shard, or not what we write."""
    try:
        kept = json.loads(entry.read_bytes())
        if Stat(kept["size"], kept["version"]) != stat:
            return None
        found = [(str(name), int(offset), int(size), int(label)) for name, offset, size, label in kept["images"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    inside = all(0 <= offset <= offset + size <= stat.size and label >= -1 for _, offset, size, label in found)
    return found if inside else None


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)


class _RemoteFile(io.RawIOBase):
    """A file at an address, for reading until ``stopped`` is set."""

    def __init__(self, address: str, size: int, stopped: Event) -> None:
        self._address, self._size, self._position, self._stopped = address, size, 0, stopped

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # At first not the whole file, even if it is small: a server that ignores ranges is noticed by what it sends.
        last = self._size - 1 if self._position == 0 else self._size
        end = max(min(self._position + len(buffer), last), self._position)
        store = store_of(self._address)
        data = store.run(store.fetch(self._address, self._position, end), self._stopped)
        buffer[: len(data)] = data
        self._position = end
        return len(data)
