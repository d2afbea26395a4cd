"""The interface of a data set: images in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from saga_fast.loaders.names import Names
from saga_fast.runtime.address import Location


class Source(Protocol):
    """A data set in a fixed order: position i is image index i in any form of storage.

    Attributes:
        paths: N relative posix paths.
        labels: (N,) int64, position in ``classes``, or -1.
        classes: names of the classes, () for unlabelled images.
    """

    paths: Sequence[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def root(self) -> Location:
        """Where the images are stored: a path, or an address without its secrets."""

    @property
    def fingerprint(self) -> str:
        """The data set's identity, which box tables record: see :func:`fingerprint`."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of an image; OSError if it cannot be read. May be called from several threads."""


def fingerprint(paths: Sequence[str]) -> str:
    """The number of images and a hash of their relative paths in order.

    File contents are not read (ImageNet is 140 GB), so a data set may move or be packed, but not gain, lose or rename
    images.
    """
    names = paths if isinstance(paths, Names) else Names.of(paths)
    return f"{len(names)}-{names.sha256()[:16]}"
