"""The rows of a data set: in memory, or for a large one in mapped files that all processes of a machine share."""

from __future__ import annotations

import hashlib
import json
import mmap
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.names import Names, encode_names
from saga_fast.runtime.cache import VARIABLE, cache_folder
from saga_fast.runtime.files import locked

Columns = dict[str, npt.NDArray[Any]]
Rows = tuple[list[str], Columns]
"""Names and columns of some rows."""
Finish = Callable[[Columns], tuple[str, ...]]
"""Completes whole columns in place, and returns the classes."""

MAPPED_BYTES = 2**26
"""Listings above it are mapped. ImageNet's takes 60 MB."""
ABOUT = "listing.json"


@dataclass(frozen=True)
class Listing:
    """The rows of a data set.

    Attributes:
        names: N names.
        columns: arrays of N numbers.
        classes: names of the classes.
        by_another: whether another process has made it, after this one began.
    """

    names: Names
    columns: Mapping[str, npt.NDArray[Any]]
    classes: tuple[str, ...]
    by_another: bool = False

    def __len__(self) -> int:
        return len(self.names)


def make_listing(identity: str, blocks: Iterable[Rows], finish: Finish) -> Listing:
    """The rows of a data set, in the order of the blocks.

    Where they take more than MAPPED_BYTES, they are written to the cache folder and mapped. Of several processes that
    list the same data set at the same time, one goes on and the others wait for its files. The files stay until the
    data set is listed again.

    Args:
        identity: tells the data sets of a machine apart, for example a kind and an absolute path.
        blocks: rows; each block has the same columns.
        finish: called with the columns of all rows.

    Raises:
        SagaError: the files cannot be written.
        ValueError: a name that holds a zero byte.
    """
    begun, encoded = time.time(), _encoded(blocks)
    parts, size = [], 0
    for part in encoded:
        parts.append(part)
        size += sum(column.nbytes for column in part.values())
        if size > MAPPED_BYTES:
            return _mapped(identity, chain(parts, encoded), finish, begun)
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


def _mapped(identity: str, parts: Iterable[Columns], finish: Finish, begun: float) -> Listing:
    """
    Args:
        begun: a listing that another process has finished later is taken instead.
    """
    key = hashlib.sha256(f"{platform.node()} {identity}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    base = cache_folder("listings")
    folder, new = base / key, base / f"{key}.new"
    try:
        with locked(base / f"{key}.lock"):
            by_another = _finished(folder) >= begun
            if not by_another:
                shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
                _write(new, parts, finish)
                shutil.rmtree(folder, ignore_errors=True)  # processes that have mapped it keep its content
                new.rename(folder)
            return _read(folder, by_another=by_another)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise SagaError(
            f"the names of a large data set cannot be kept in {base}: {error.strerror or error};"
            f" {VARIABLE} chooses another folder"
        ) from error


def _write(folder: Path, parts: Iterable[Columns], finish: Finish) -> None:
    folder.mkdir()
    files: dict[str, BinaryIO] = {}
    types: dict[str, str] = {}
    digest = hashlib.sha256()
    with ExitStack() as stack:
        for part in parts:
            digest.update(part["text"].data)
            for name, column in part.items():
                if name not in files:
                    files[name] = stack.enter_context((folder / name).open("wb"))
                    types[name] = column.dtype.str
                files[name].write(np.ascontiguousarray(column).data)
    columns: Columns = {name: np.memmap(folder / name, dtype, mode="r+") for name, dtype in types.items()}
    classes = finish(_without_names(columns))
    about = {"types": types, "classes": classes, "sha256": digest.hexdigest(), "finished": time.time()}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _finished(folder: Path) -> float:
    """When a listing was finished, seconds since 1970; 0 if there is none."""
    try:
        return float(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["finished"])
    except FileNotFoundError:
        return 0.0


def _read(folder: Path, *, by_another: bool) -> Listing:
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    columns: Columns = {name: _map(folder / name, dtype) for name, dtype in about["types"].items()}
    names = Names(columns["text"], columns["end"], about["sha256"])
    return Listing(names, _without_names(columns), tuple(about["classes"]), by_another)


def _map(path: Path, dtype: str) -> npt.NDArray[Any]:
    """The column of a file. Shuffled reads of single rows would read 128 kB each, if the system were not told."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(memory, dtype)
