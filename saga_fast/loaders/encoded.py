"""The encoded images of a task. Those in local files are read by compiled code, all of them in one call.

Python gives its lock up for each system call and waits to get it back. 16 threads on 16 cores that opened, read,
closed, checked and decoded each file by themselves loaded 2,500 images/s, where libjpeg-turbo alone decodes 5,500
(an H200's machine).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
from numba.core import types

from saga_fast.kernels._jit import jit
from saga_fast.loaders.decode import DecodeError, read_bytes
from saga_fast.loaders.source import Source

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
LONGEST = 2**26
"""Bytes of a file that compiled code reads; longer ones, and whatever it cannot read, are read by ``Source.read``."""
FIRST_GUESS = 2**17
"""Bytes per file of unknown length for which memory is allocated at first; pages that nobody touches take none."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def _libc(name: str, result: Any, *arguments: Any) -> Any:
    return types.ExternalFunction(name, result(*arguments))


_open = _libc("open", types.int32, types.intp, types.int32)
_seek = _libc("lseek", types.int64, types.int32, types.int64, types.int32)
_read = _libc("pread", types.int64, types.int32, types.intp, types.uint64, types.int64)
_close = _libc("close", types.int32, types.int32)


class FileRange(NamedTuple):
    """Where a local file holds an image."""

    path: str
    offset: int = 0
    size: int = -1
    """Bytes; -1: the whole file."""


class InLocalFiles(Protocol):
    """A source whose images lie in local files as they are. The class that has its ``read`` has ``file_range``, too."""

    def file_range(self, index: int) -> FileRange:
        """Where an image lies."""


def in_local_files(source: object) -> TypeGuard[InLocalFiles]:
    """Whether a source's images lie in local files. No, if a subclass replaces ``read``, for example to decrypt."""
    reader = next((kind for kind in type(source).__mro__ if "read" in vars(kind)), object)
    return "file_range" in vars(reader)


@dataclass(frozen=True)
class EncodedImages:
    """The encoded bytes of n images, one after the other in one array.

    Attributes:
        memory: (bytes,) uint8.
        begins: (n,) int64, where each image begins.
        lengths: (n,) int64, bytes; 0 for an image that could not be read.
        errors: positions of those images -> why.
    """

    memory: Bytes
    begins: Int64
    lengths: Int64
    errors: Mapping[int, str]

    @classmethod
    def of(cls, files: Sequence[bytes]) -> EncodedImages:
        """Images whose bytes are in memory, copied once."""
        lengths = np.array([len(file) for file in files], np.int64)
        memory = np.concatenate([np.empty(0, np.uint8), *(np.frombuffer(file, np.uint8) for file in files)])
        return cls(memory, np.cumsum(lengths) - lengths, lengths, {})

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, n: int | np.int64) -> Bytes:
        """The bytes of an image, (lengths[n],) uint8, not copied."""
        return self.memory[self.begins[n] : self.begins[n] + self.lengths[n]]


def read_images(source: Source, indices: Int64) -> EncodedImages:
    """Read images of a data set, (n,) int64.

    Raises:
        OSError: file descriptors or memory are exhausted. An image that cannot be read is in ``errors``.
    """
    begins, lengths = np.zeros(len(indices), np.int64), np.full(len(indices), -1, np.int64)
    memory = np.empty(0, np.uint8)
    if in_local_files(source) and len(indices):
        ranges = [source.file_range(index) for index in indices.tolist()]
        names = [os.fsencode(each.path) + b"\0" for each in ranges]
        starts = np.cumsum([0, *map(len, names)])
        offsets, sizes = (np.array(column, np.int64) for column in zip(*(each[1:] for each in ranges), strict=True))
        memory = _read_files(np.frombuffer(b"".join(names), np.uint8), starts, offsets, sizes, begins, lengths)
    rest, errors = dict[int, bytes](), dict[int, str]()
    for n in np.flatnonzero(lengths < 0).tolist():
        try:
            rest[n] = read_bytes(source, int(indices[n]))
        except DecodeError as error:
            rest[n], errors[n] = b"", str(error)
    if not rest:
        return EncodedImages(memory, begins, lengths, errors)
    more, rows = EncodedImages.of(list(rest.values())), list(rest)
    begins[rows], lengths[rows] = len(memory) + more.begins, more.lengths
    memory = np.concatenate([memory, more.memory]) if len(memory) else more.memory
    return EncodedImages(memory, begins, lengths, errors)


@jit()
def _read_files(names: Any, starts: Any, offsets: Any, sizes: Any, begins: Any, lengths: Any) -> Any:
    """Read n files, one descriptor open at a time; write ``begins`` and ``lengths``, -1 for a file that was not read.

    names: (bytes,) uint8, paths that end in zero bytes and begin at ``starts``; offsets and sizes
    see :class:`FileRange`.
    A FIFO, a device and a folder are not read: they have no size, or no bytes.
    """
    memory = np.empty(max(FIRST_GUESS * sizes.shape[0], sizes[sizes <= LONGEST].sum()), np.uint8)
    end = 0
    for n in range(sizes.shape[0]):
        begins[n], lengths[n] = end, -1
        name = names.ctypes.data + starts[n]
        handle = _open(name, _FLAGS)
        if handle < 0:
            continue
        size = sizes[n] if sizes[n] >= 0 else _seek(handle, 0, os.SEEK_END)
        if 0 < size <= LONGEST:
            if end + size > memory.shape[0]:
                _close(handle)  # first, because allocating may fail
                memory = _grown(memory, end, size)
                handle = _open(name, _FLAGS)
            done = _read_from(handle, memory.ctypes.data + end, size, offsets[n])
            if done == size:
                lengths[n] = size
                end += size
        _close(handle)
    return memory[:end]


@jit()
def _read_from(handle: Any, target: Any, size: Any, offset: Any) -> Any:
    """Read ``size`` bytes of an open file to an address; return how many there were."""
    done = 0
    while done < size:
        count = _read(handle, target + done, size - done, offset + done)
        if count <= 0:
            break
        done += count
    return done


@jit()
def _grown(memory: Any, used: Any, more: Any) -> Any:
    """Larger memory with the same first ``used`` bytes, and room for ``more``."""
    grown = np.empty(max(2 * memory.shape[0], used + more), np.uint8)
    grown[:used] = memory[:used]
    return grown
