"""The names of a data set's images as one block of text: 16 bytes less per image than a list, and it may be mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Text = npt.NDArray[np.uint8]
NAMES_AT_ONCE = 2**18
"""Names that are decoded at a time: 16 MB, if a name has 64 bytes."""


class Names(Sequence[str]):
    """N relative posix paths in a fixed order; read-only.

    Args:
        text: (bytes,) uint8, each name followed by a zero byte. Bytes that are not UTF-8 are kept as they are.
        ends: (N,) int64, where in ``text`` the next name begins.
        digest: what :meth:`sha256` gives, if it is known.
    """

    def __init__(self, text: Text, ends: Int64, digest: str | None = None) -> None:
        self._text, self._ends, self._digest = text, ends, digest

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names of strings.

        Raises:
            ValueError: a name that holds a zero byte.
        """
        return cls(*encode_names(list(names)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError outside
        start = int(self._ends[place - 1]) if place else 0
        return self._text[start : int(self._ends[place]) - 1].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), NAMES_AT_ONCE):
            start = int(self._ends[first - 1]) if first else 0
            end = int(self._ends[min(first + NAMES_AT_ONCE, len(self)) - 1])
            yield from self._text[start:end].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self._ends, other._ends) and np.array_equal(self._text, other._text)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join([*self[:3], *(['...'] if len(self) > 3 else [])])})"

    def sha256(self) -> str:
        """The SHA-256 of the names, each followed by a zero byte, in hexadecimal."""
        return hashlib.sha256(self._text.data).hexdigest() if self._digest is None else self._digest


def encode_names(names: list[str]) -> tuple[Text, Int64]:
    """The text and the ends of names, see :class:`Names`.

    Raises:
        ValueError: a name that holds a zero byte.
    """
    encoded = "\0".join([*names, ""]).encode("utf-8", "surrogateescape")
    text = np.frombuffer(encoded, np.uint8)
    ends = np.flatnonzero(text == 0) + 1
    if len(ends) != len(names):
        raise ValueError("a name holds a zero byte")
    return text, ends
