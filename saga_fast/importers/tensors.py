"""A file's tensors, each to be taken or dropped exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saga_fast.errors import SagaError

Renames = Sequence[tuple[str, str]]
"""(theirs, ours) pieces of names: a piece that begins with a dot anywhere, any other at the name's beginning."""


class Piece(NamedTuple):
    """A tensor and its name in the file, for messages."""

    tensor: Tensor
    origin: str


class Part(dict[str, Piece]):
    """Tensors under one prefix, by their names without it (and renamed)."""

    def __init__(self, path: Path, prefix: str, pieces: Mapping[str, Piece], renames: Renames = ()) -> None:
        super().__init__(pieces)
        self.path, self.prefix, self.renames = path, prefix, renames

    def need(self, name: str) -> Piece:
        """The tensor of that name.

        Raises:
            SagaError: the file lacks it.
        """
        if name not in self:
            raise SagaError(f"{self.path} lacks {self.origin(name)}")
        return self[name]

    def origin(self, name: str) -> str:
        """What the file would call a tensor."""
        return self.prefix + rename(name, [(ours, theirs) for theirs, ours in self.renames])

    def refuse(self, name: str, reason: str) -> SagaError:
        """An error about one tensor, to be raised."""
        return SagaError(f"{self.path}: {self[name].origin} has shape {tuple(self[name].tensor.shape)}, {reason}")


class Tensors:
    """A state dict of another project, taken apart by prefixes.

    Args:
        path: the file, for messages.
        state: names -> tensors; what is no tensor is refused.
        at: where in the file, for messages.

    ``module.`` before all names, which data parallelism leaves, is ignored.
    """

    def __init__(self, path: Path, state: Any, *, at: str = "") -> None:
        if not isinstance(state, Mapping):
            raise SagaError(f"{path}: {at.rstrip('.') or 'the file'} holds no tensors")
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise SagaError(f"{path}: {at}{name} is not a tensor but a {type(value).__name__}")
        self.path = path
        self._base = at + ("module." if any(name.startswith("module.") for name in state) else "")
        self._left = {name.removeprefix("module."): Piece(tensor, at + name) for name, tensor in state.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def has(self, *prefixes: str) -> bool:
        """Whether any name that is left begins like that."""
        return any(name.startswith(prefixes) for name in self._left)

    def take(self, prefix: str = "", *, renames: Renames = ()) -> Part:
        """Take out all tensors whose names begin with ``prefix``."""
        names = [name for name in self._left if name.startswith(prefix)]
        pieces = {rename(name.removeprefix(prefix), renames): _plain(self._left.pop(name)) for name in names}
        return Part(self.path, self._base + prefix, pieces, renames)

    def pop(self, name: str) -> Piece | None:
        """Take out the tensor of exactly that name, if there is one."""
        return _plain(self._left.pop(name)) if name in self._left else None

    def origin(self, name: str) -> str:
        """What the file would call a tensor."""
        return self._base + name

    def drop(self, *prefixes: str) -> int:
        """Take out tensors that have no place here, and count them."""
        names = [name for name in self._left if name.startswith(prefixes)]
        for name in names:
            del self._left[name]
        return len(names)

    def finish(self, title: str) -> None:
        """
        Raises:
            SagaError: a tensor is left; the message names the first.
        """
        if self._left:
            first, *others = (piece.origin for piece in self._left.values())
            more = f" and {len(others)} more" if others else ""
            raise SagaError(f"{self.path} has a tensor that no {title} checkpoint should have: {first}{more}")


def rename(name: str, renames: Renames) -> str:
    """Apply the first of the ``renames`` that fits."""
    for theirs, ours in renames:
        if theirs.startswith("."):
            if theirs in name:
                return name.replace(theirs, ours)
        elif name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def begins(state: object, *prefixes: str) -> bool:
    """Whether any name of a state dict begins like that, ``module.`` aside; False of what is no state dict."""
    return isinstance(state, Mapping) and any(str(name).removeprefix("module.").startswith(prefixes) for name in state)


def _plain(piece: Piece) -> Piece:
    """Mixed-precision training leaves 16-bit weights; ours are float32."""
    tensor = piece.tensor.detach()
    return Piece(tensor.to(torch.float32) if tensor.is_floating_point() else tensor, piece.origin)
