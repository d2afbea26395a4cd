"""Images in tar files, as WebDataset or ``tar -cf`` leaves them, in a fixed order."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.decode import MAX_BYTES
from saga_fast.loaders.image_folder import EXTENSIONS
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
        self.paths: list[str] = []
        places: list[tuple[int, int, int]] = []
        numbers: list[int] = []
        for number, path in enumerate(self._files):
            with one_line_errors(path):
                for name, offset, size, label in _members(path):
                    self.paths.append(name)
                    places.append((number, offset, size))
                    numbers.append(label)
        if not self.paths:
            raise SagaError(f"no image in {self.root}: expected tar files with {', '.join(EXTENSIONS)} in them")
        self._places = np.array(places, np.int64)  # (N, 3): file, offset, size
        self.classes, self.labels = classes_of(self.paths, numbers)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (
            f"Shards({str(self.root)!r}: {len(self)} images in {len(self._files)} files, {len(self.classes)} classes)"
        )

    def read(self, index: int) -> bytes:
        """See :meth:`saga_fast.loaders.source.Source.read`."""
        number, offset, size = self._places[index].tolist()
        if size > MAX_BYTES:
            raise OSError(f"{size} bytes are more than {MAX_BYTES}")
        with self._files[number].open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise OSError(f"{self._files[number]} ends within {self.paths[index]}")
        return data

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


def classes_of(paths: list[str], numbers: list[int]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The classes and the (N,) labels of images with these names and numbers (-1: none) beside them."""
    if max(numbers) >= 0:
        return tuple(str(number) for number in range(max(numbers) + 1)), np.array(numbers, np.int64)
    folders = [PurePosixPath(path).parts for path in paths]
    names = [parts[0] if len(parts) > 1 else "" for parts in folders]
    if not all(names):
        return (), np.full(len(paths), -1, np.int64)
    classes = tuple(sorted(set(names)))
    position = {name: number for number, name in enumerate(classes)}
    return classes, np.array([position[name] for name in names], np.int64)
