"""Images that cannot be decoded: listed, left out, and too many of them stop the run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.files import write_text
from saga_fast.loaders.source import Source

_ONE_LINE = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""File names may hold them; a list of lines and tabs may not."""


class BadImages:
    """The undecodable images of a data set, found by any loader, known to all that share the list.

    Args:
        source: the data set.
        max_fraction: more than this fraction of it stops the run (``data.max_bad_fraction``).
        known: indices that an earlier run found.
    """

    def __init__(self, source: Source, *, max_fraction: float = 0.01, known: Iterable[int] = ()) -> None:
        self._source = source
        self._max_fraction = max_fraction
        self._reasons: dict[int, str] = dict.fromkeys(known, "found by an earlier run")
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
        """What is wrong with each of them."""
        with self._lock:
            return dict(self._reasons)

    def update(self, reasons: Mapping[int, str]) -> None:
        """List images that others have found.

        Raises:
            SagaError: see :meth:`add`.
        """
        for index, reason in sorted(reasons.items()):
            if index not in self:
                self.add(index, reason)

    def add(self, index: int, reason: str) -> None:
        """List an image.

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

    def write(self, path: Path) -> None:
        """One line per bad image: index, path, reason, separated by tabs. No file, when there is none."""
        rows = sorted(self._reasons.items())
        if rows:
            named = ((i, self._source.paths[i].translate(_ONE_LINE), why.translate(_ONE_LINE)) for i, why in rows)
            write_text(path, "".join(f"{index}\t{name}\t{reason}\n" for index, name, reason in named))
        else:
            path.unlink(missing_ok=True)
