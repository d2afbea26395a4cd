"""Copies of remote files in a folder of this machine."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from threading import Event

from saga_fast.errors import SagaError
from saga_fast.loaders.remote.in_order import in_order
from saga_fast.loaders.remote.signed import version_key
from saga_fast.loaders.remote.store import Stat, store_of
from saga_fast.runtime.address import public_address
from saga_fast.runtime.files import locked, replacing

CHUNK = 2**23
"""Bytes of a request."""
THREADS = 8
"""Files that are downloaded at once, each with one request at a time: this bounds the memory."""


def downloaded(addresses: Sequence[str], stats: Sequence[Stat], folder: Path) -> list[Path]:
    """The paths of the files' copies, which are complete; those that are missing are downloaded.

    A file's copy belongs to its address without a signature, its size and its version: one that changed on its server
    gets another copy. Processes of a machine that want the same copy wait for the first.

    Raises:
        SagaError: a file cannot be read, or the copies do not fit on the disk.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = [folder / _name(address, stat) for address, stat in zip(addresses, stats, strict=True)]
    missing = sum(stat.size for copy, stat in zip(copies, stats, strict=True) if not _is_complete(copy, stat))
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise SagaError(
            f"the copies need {missing / 1e9:.1f} GB more in {folder}, which has {free / 1e9:.1f} GB free: name another"
            " folder, or none"
        )
    jobs = list(zip(addresses, stats, copies, strict=True))
    return list(in_order(_download, jobs, threads=THREADS, name="download", unit="files"))


def _name(address: str, stat: Stat) -> str:
    key = hashlib.sha256(version_key(address, stat).encode()).hexdigest()[:16]
    return f"{key}-{PurePosixPath(public_address(address)).name[-100:]}"


def _is_complete(copy: Path, stat: Stat) -> bool:
    return copy.is_file() and copy.stat().st_size == stat.size


def _download(job: tuple[str, Stat, Path], stopped: Event) -> Path:
    address, stat, copy = job
    if _is_complete(copy, stat):
        return copy
    with locked(copy.with_name(f".{copy.name}.lock")):
        if _is_complete(copy, stat):  # another process was faster
            return copy
        with replacing(copy) as temporary, temporary.open("wb") as file:
            for begin in range(0, stat.size, CHUNK):
                file.write(_read(address, begin, min(begin + CHUNK, stat.size), stopped))
    return copy


def _read(address: str, begin: int, end: int, stopped: Event) -> bytes:
    store = store_of(address)
    try:
        return store.run(store.fetch(address, begin, end), stopped)
    except OSError as error:
        raise SagaError(f"cannot read {error}") from error
