"""Images in tar files, as WebDataset or ``tar -cf`` leaves them, in a fixed order."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.decode import MAX_BYTES
from saga_fast.loaders.encoded import FileRange
from saga_fast.loaders.image_folder import EXTENSIONS
from saga_fast.loaders.listing import Columns, Rows, make_listing
from saga_fast.loaders.source import fingerprint
from saga_fast.runtime.address import Location

Member = tuple[str, int, int, int]
"""Name, offset and size in bytes, and label or -1 of an image in a tar."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
BESIDE_TARS = (".parquet", ".json", ".csv", ".idx")
"""Endings of what img2dataset and WebDataset's tools write next to their tar files."""


class Shards:
    """The images of one tar file, or of all tar files of a folder, sorted by name; within a file, in its order.

    The tars are read once to locate each image. Nothing is extracted, so a member's name such as ``/etc/passwd`` or
    ``../../x`` is never used as a path. A tar of an ImageFolder in its order has its fingerprint, so a box table fits
    both.

    An image's label is, in this order: that of the member with its name and the ending ``.cls`` (a number) or
    ``.json`` (an object with a number ``cls`` or ``label``) in the same tar; the first folder in its member name; none.

    Args:
        root: the file or folder.
        files: the tar files, if they are copies of what is at ``root``; None: those at ``root``.

    Attributes:
        root: the file or folder.
        paths: N member names; position i is image index i.
        labels: (N,) int64, position in ``classes``, or -1.
        classes: the numbers up to the largest as strings, or sorted names of folders, or ().

    Raises:
        SagaError: no such file, a compressed tar, not a tar, one that is cut, a label that is no number, or no image.
    """

    def __init__(self, root: Path | str, *, files: Sequence[Path] | None = None) -> None:
        self.root: Location = Path(root) if files is None else root
        self._files = _tars(Path(root)) if files is None else list(files)
        folders: dict[str, int] = {}
        identity = f"tars {Path(root).resolve() if files is None else files}"  # copies are named by their versions
        listing = make_listing(identity, self._rows(folders), lambda columns: classes_of(columns, folders))
        if not len(listing):
            raise SagaError(f"no image in {self.root}: expected tar files with {', '.join(EXTENSIONS)} in them")
        self.paths: Sequence[str] = listing.names
        self.labels: npt.NDArray[np.int64] = listing.columns["label"]
        self.classes = listing.classes
        self._columns = listing.columns

    def _rows(self, folders: dict[str, int]) -> Iterator[Rows]:
        for number, path in enumerate(self._files):
            with one_line_errors(path):
                yield rows_of(list(_members(path)), number, folders)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (
            f"Shards({str(self.root)!r}: {len(self)} images in {len(self._files)} files, {len(self.classes)} classes)"
        )

    def read(self, index: int) -> bytes:
        """See :meth:`saga_fast.loaders.source.Source.read`."""
        where = self.file_range(index)
        if where.size > MAX_BYTES:
            raise OSError(f"{where.size} bytes are more than {MAX_BYTES}")
        with Path(where.path).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), where.size, where.offset)
        if len(data) < where.size:
            raise OSError(f"{where.path} ends within {self.paths[index]}")
        return data

    def file_range(self, index: int) -> FileRange:
        """See :meth:`saga_fast.loaders.encoded.InLocalFiles.file_range`."""
        number, offset, size = (int(self._columns[name][index]) for name in ("file", "offset", "size"))
        return FileRange(str(self._files[number]), offset, size)

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`saga_fast.loaders.source.fingerprint`."""
        return fingerprint(self.paths)


def is_shards(path: Path) -> bool:
    """Whether a path is a tar file, or a folder of tar files and of what img2dataset writes next to them."""
    if not path.is_dir():
        return path.name.lower().endswith((".tar", *COMPRESSED))
    names = [entry.name.lower() for entry in path.iterdir() if not entry.name.startswith(".")]
    tars = [name for name in names if name.endswith((".tar", *COMPRESSED))]
    return bool(tars) and all(name.endswith((".tar", *COMPRESSED, *BESIDE_TARS)) for name in names)


def _tars(root: Path) -> list[Path]:
    """The tar files at a path, sorted by name; hidden ones, such as ``._0.tar`` of a Mac, are left out.

    Raises:
        SagaError: a compressed one.
    """
    files = sorted(path for path in root.iterdir() if not path.name.startswith(".")) if root.is_dir() else [root]
    for path in files:
        if path.name.lower().endswith(COMPRESSED):
            raise SagaError(f"{path} is compressed, and images are read from tar files where they lie: decompress it")
    return [path for path in files if path.name.endswith(".tar")] if root.is_dir() else files


@contextmanager
def one_line_errors(where: Location) -> Iterator[None]:
    """
    Raises:
        SagaError: in place of the errors of reading a tar.
    """
    try:
        yield
    except SagaError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise SagaError(f"not an uncompressed tar file, or one that is cut: {where}: {error}") from error
    except OSError as error:
        raise SagaError(f"cannot read {where}: {error.strerror or error}") from error


def _members(path: Path) -> Iterator[Member]:
    if not path.is_file():  # a FIFO would be waited for
        raise OSError("no such file, or not a regular one")
    with path.open("rb") as file:
        yield from members(file, path)


def members(file: IO[bytes], where: Location) -> Iterator[Member]:
    """The images of a tar; a label may come before its image or after it."""
    images: list[tuple[str, int, int]] = []
    labels: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them
            name = member.name.removeprefix("./")
            if not member.isreg() or member.issparse() or PurePosixPath(name).name.startswith("."):
                continue
            if "\0" in name:
                raise ValueError(f"a member has the name {name!r}")
            if name.lower().endswith(EXTENSIONS):
                images.append((name, member.offset_data, member.size))
            elif name.endswith((".cls", ".json")):
                content: Any = tar.extractfile(member)
                label = _number(content.read(2**20), f"{where}: {repr(name)[1:-1]}", is_json=name.endswith(".json"))
                if label is not None:
                    labels[_key(name)] = label
    yield from ((name, offset, size, labels.get(_key(name), -1)) for name, offset, size in images)


def _key(name: str) -> str:
    """The key by which WebDataset groups members: the name up to the first dot of its file part."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _number(content: bytes, where: str, *, is_json: bool) -> int | None:
    """The label in a member; None for JSON without a label."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SagaError(f"no label in {where}: {error}") from error
    if is_json:
        value = value.get("cls", value.get("label")) if isinstance(value, dict) else None
    if value is None and is_json:
        return None
    if type(value) is not int or not 0 <= value < 2**20:
        raise SagaError(f"a label must be a number from 0 on, got {value!r} in {where}")
    return value


def rows_of(members: Sequence[Member], file: int, folders: dict[str, int]) -> Rows:
    """The rows of a tar's images.

    Args:
        members: the images.
        file: the tar's number.
        folders: gets a number for each first folder of a member name, "" for none.
    """
    names = [name for name, _, _, _ in members]
    numbers = np.array([row[1:] for row in members], np.int64).reshape(-1, 3)
    return names, {
        "file": np.full(len(names), file, np.int32),
        "offset": numbers[:, 0],
        "size": numbers[:, 1],
        "label": numbers[:, 2],
        "folder": np.array([folders.setdefault(_first_folder(name), len(folders)) for name in names], np.int32),
    }


def _first_folder(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else ""


def classes_of(columns: Columns, folders: Mapping[str, int]) -> tuple[str, ...]:
    """The classes; the labels of a data set without numbers become those of its folders.

    Args:
        columns: see :func:`rows_of`.
        folders: the numbers of the column ``folder``.
    """
    labels = columns["label"]
    if len(labels) and labels.max() >= 0:
        return tuple(str(number) for number in range(int(labels.max()) + 1))
    if "" in folders:
        return ()
    names = sorted(folders)
    positions = np.empty(len(names), np.int64)
    positions[[folders[name] for name in names]] = np.arange(len(names))
    for start in range(0, len(labels), 2**20):  # the columns may be mapped, and larger than the memory
        labels[start : start + 2**20] = positions[columns["folder"][start : start + 2**20]]
    return tuple(names)
