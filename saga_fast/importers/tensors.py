"""The tensors of a file: each one is taken or dropped exactly once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saga_fast.errors import SagaError

Renames = Sequence[tuple[str, str]]
"""(text in the file's name, replacement). Text that starts with a dot is replaced anywhere, other text only at the
start of the name."""


class NamedTensor(NamedTuple):
    """A tensor and its name in the file, for messages."""

    tensor: Tensor
    origin: str


class Part(dict[str, NamedTensor]):
    """The tensors with one prefix, by their names without the prefix and after ``renames``."""

    def __init__(self, path: Path, prefix: str, tensors: Mapping[str, NamedTensor], renames: Renames = ()) -> None:
        super().__init__(tensors)
        self.path, self.prefix, self.renames = path, prefix, renames

    def need(self, name: str) -> NamedTensor:
        """The tensor of that name.

        Raises:
            SagaError: the file lacks it.
        """
        if name not in self:
            raise SagaError(f"{self.path} lacks {self.origin(name)}")
        return self[name]

    def origin(self, name: str) -> str:
        """The name of a tensor in the file, also of a missing one."""
        return self.prefix + rename(name, [(new, old) for old, new in self.renames])

    def shape_error(self, name: str, reason: str) -> SagaError:
        """An error with a tensor's shape, for the caller to raise."""
        return SagaError(f"{self.path}: {self[name].origin} has shape {tuple(self[name].tensor.shape)}, {reason}")


class Tensors:
    """The state dict of another project, from which tensors are taken by prefix.

    The prefixes ``module.`` of data parallelism and ``_orig_mod.`` of torch.compile are ignored.

    Args:
        path: the file, for messages.
        state: name -> tensor.
        at: prefix of the state dict's names in the file, for messages.

    Raises:
        SagaError: ``state`` is not a mapping, has a value that is not a plain tensor, or two of one name.
    """

    def __init__(self, path: Path, state: Any, *, at: str = "") -> None:
        if not isinstance(state, Mapping):
            raise SagaError(f"{path}: {at.rstrip('.') or 'the file'} contains no tensors")
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise SagaError(f"{path}: {at}{name} is not a tensor but a {type(value).__name__}")
            if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
                kind = f"{value.dtype}, {value.layout}, on {value.device}".replace("torch.", "")
                raise SagaError(f"{path}: {at}{name} is not a plain tensor of numbers but {kind}")
        self.path = path
        names = {str(name): _clean(str(name)) for name in state}
        # A missing tensor would have the wrapper's name, too.
        wrappers = [name.removesuffix(short) for name, short in names.items() if name.endswith(short)]
        self._base = at + max(wrappers, key=len, default="")
        self._remaining = {names[str(name)]: NamedTensor(tensor, f"{at}{name}") for name, tensor in state.items()}
        if len(self._remaining) < len(state):
            raise SagaError(f"{path}: {at.rstrip('.') or 'the file'} has two tensors of a name without module.")

    def __contains__(self, name: str) -> bool:
        return name in self._remaining

    def has_prefix(self, *prefixes: str) -> bool:
        """Whether the name of any remaining tensor starts with one of the prefixes."""
        return any(name.startswith(prefixes) for name in self._remaining)

    def take(self, prefix: str = "", *, renames: Renames = ()) -> Part:
        """Remove and return the tensors whose names start with ``prefix``."""
        names = [name for name in self._remaining if name.startswith(prefix)]
        tensors = {rename(name.removeprefix(prefix), renames): self._take(name) for name in names}
        return Part(self.path, self._base + prefix, tensors, renames)

    def pop(self, name: str) -> NamedTensor | None:
        """Remove and return the tensor of exactly that name, None if there is none."""
        return self._take(name) if name in self._remaining else None

    def _take(self, name: str) -> NamedTensor:
        """A tensor in float32: mixed-precision training may save 16-bit weights.

        Raises:
            SagaError: it is not finite.
        """
        named = self._remaining.pop(name)
        tensor = named.tensor.detach()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
            if not bool(tensor.isfinite().all()):
                raise SagaError(f"{self.path}: {named.origin} holds values that are not finite: the training failed")
        return NamedTensor(tensor, named.origin)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the remaining tensor of that name, None if there is none."""
        return tuple(self._remaining[name].tensor.shape) if name in self._remaining else None

    def origin(self, name: str) -> str:
        """The name of a tensor in the file, also of a missing one."""
        return self._base + name

    def drop(self, *prefixes: str) -> int:
        """Remove the tensors whose names start with one of the prefixes, and return their number."""
        names = [name for name in self._remaining if name.startswith(prefixes)]
        for name in names:
            del self._remaining[name]
        return len(names)

    def finish(self, title: str) -> None:
        """Check that no tensor remains.

        Raises:
            SagaError: a tensor remains; the message names the first.
        """
        if self._remaining:
            first, *remaining = (named.origin for named in self._remaining.values())
            more = f" and {len(remaining)} more" if remaining else ""
            raise SagaError(f"{self.path} has a tensor that no {title} checkpoint should have: {first}{more}")


def rename(name: str, renames: Renames) -> str:
    """Apply the first of the ``renames`` that matches."""
    for old, new in renames:
        if old.startswith("."):
            if old in name:
                return name.replace(old, new)
        elif name.startswith(old):
            return new + name.removeprefix(old)
    return name


def has_prefix(state: object, *prefixes: str) -> bool:
    """Whether ``state`` is a mapping in which any name starts with one of the prefixes, after its wrappers' names."""
    return isinstance(state, Mapping) and any(_clean(str(name)).startswith(prefixes) for name in state)


def _clean(name: str) -> str:
    """A tensor's name without those of torch.compile (anywhere) and of data parallelism (in front)."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
