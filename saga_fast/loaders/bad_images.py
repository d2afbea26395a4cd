"""Images that cannot be decoded: they are listed and left out, and too many of them stop the run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.source import Source
from saga_fast.runtime.distributed import gather_objects, world_size
from saga_fast.runtime.files import write_text
from saga_fast.runtime.terminal import printable

FOUND_EARLIER = "found by an earlier run"
"""Reason of an image whose own reason was not kept."""


class BadImages:
    """The undecodable images of a data set, shared by all loaders that are given the list.

    Args:
        source: the data set.
        max_fraction: more than this fraction of it stops the run (``data.max_bad_fraction``).
        known: indices that an earlier run found.
    """

    def __init__(self, source: Source, *, max_fraction: float = 0.01, known: Iterable[int] = ()) -> None:
        self._source = source
        self._max_fraction = max_fraction
        self._reasons: dict[int, str] = dict.fromkeys(known, FOUND_EARLIER)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """Sorted indices of the bad images, int64."""
        return np.array(sorted(self._reasons), np.int64)

    @property
    def reasons(self) -> dict[int, str]:
        """The reason of each bad image, by index."""
        with self._lock:
            return dict(self._reasons)

    def update(self, reasons: Mapping[int, str]) -> None:
        """Add images that another loader or process has found.

        Raises:
            SagaError: see :meth:`add`.
        """
        for index, reason in sorted(reasons.items()):
            if index not in self:
                self.add(index, reason)

    def add(self, index: int, reason: str) -> None:
        """Add an image.

        Raises:
            SagaError: more than ``max_fraction`` of the data set is bad now.
        """
        with self._lock:
            self._reasons[index] = reason
            count, total = len(self._reasons), len(self._source)
        if count > self._max_fraction * total:
            raise SagaError(
                f"{count} of {total} images in {self._source.root} cannot be decoded, more than max_bad_fraction"
                f" {self._max_fraction:g} allows; the last is {self._source.paths[index]}: {reason}"
            )

    def share(self) -> None:
        """Add the bad images of all ranks, so that their next epochs have the same order and length.

        Raises:
            SagaError: together they are too many; on every rank.
        """
        if world_size() > 1:
            for reasons in gather_objects(self.reasons):
                self.update(reasons)

    def write(self, path: Path) -> None:
        """Write one line per bad image: index, path and reason, separated by tabs. No bad image: no file.

        What does not print is escaped as :func:`saga_fast.runtime.terminal.printable` does.
        """
        rows = sorted(self._reasons.items())
        if rows:
            named = ((index, printable(self._source.paths[index]), printable(reason)) for index, reason in rows)
            write_text(path, "".join(f"{index}\t{name}\t{reason}\n" for index, name, reason in named))
        else:
            path.unlink(missing_ok=True)
