"""What a format's reader makes of a file, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.errors import SagaError
from saga_fast.importers.networks import Projector, read_projector, read_resnet
from saga_fast.importers.tensors import Part, Piece, Renames, Tensors

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class Draft:
    """A model to be: parts of its config, and tensors by our names.

    Attributes:
        path: the file.
        wanted, wanted_encoder: the method and the encoder that the user asks for, where a file does not say which.
        method, encoder: fields of their configs.
        size: side of the images it was trained on, pixels.
        epoch: as the file says.
        pieces: our names -> tensors.
        fresh: our names' beginnings -> why these start anew.
        dropped, notes: lines for the user.
        boxes: ContrastiveCrop's, (N, 4) h_min, w_min, h_max, w_max, normalised.
    """

    def __init__(
        self,
        path: Path,
        content: Mapping[str, Any],
        *,
        wanted: str | None = None,
        wanted_encoder: str | None = None,
        fresh_memory: bool = False,
    ) -> None:
        self._fresh_memory = fresh_memory
        self.path, self.wanted, self.wanted_encoder = path, wanted, wanted_encoder
        self._content = content
        self._used = {"epoch", "arch", "format", "version"}
        self.method: dict[str, Any] = {}
        self.encoder: dict[str, Any] = {}
        self.size = 224
        self.epoch = 0
        self.pieces: dict[str, Piece] = {}
        self.fresh: dict[str, str] = {}
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.boxes: npt.NDArray[np.float32] | None = None
        self.projector: Projector | None = None
        self._places: list[tuple[str, Part]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def use(self, key: str) -> Any:
        """A top-level entry of the file."""
        self._used.add(key)
        return self._content.get(key)

    def tensors(self, *keys: str) -> Tensors:
        """The state dict at ``keys``; none: the file itself is one."""
        state: Any = self._content
        if not keys:
            self._used.update(self._content)
        for depth, key in enumerate(keys):
            if not isinstance(state, Mapping) or key not in state:
                raise SagaError(f"{self.path} lacks {'.'.join(keys[: depth + 1])}")
            self._used.add(key)
            state = state[key]
        return Tensors(self.path, state, at="".join(f"{key}." for key in keys))

    def memory(self, tensors: Tensors, name: str) -> Piece | None:
        """A bank, a queue or what belongs to it; None if the user wants a new one.

        Raises:
            SagaError: the file lacks it.
        """
        piece = tensors.pop(name)
        if piece is None and not self._fresh_memory:
            raise SagaError(f"{self.path} lacks {tensors.origin(name)}: start a new one with --fresh-memory")
        return None if self._fresh_memory else piece

    def unused(self) -> list[str]:
        """Top-level entries that nothing was taken from."""
        return [key for key in self._content if key not in self._used]

    def place(self, part: Part, to: str) -> None:
        """Put tensors below our module ``to``."""
        self._places.append((f"{to}.", part))
        self.pieces |= {f"{to}.{name}": piece for name, piece in part.items()}

    def put(self, name: str, piece: Piece) -> None:
        """Put one tensor."""
        self.pieces[name] = piece

    def place_resnet(self, part: Part, to: str = "encoder", *, in_channels: int = 3) -> None:
        """Put a ResNet in torchvision's names; the first one says what the encoder's config is.

        A 3x3 first convolution is CIFAR's: images of 32 px and their mean.
        """
        if not self.encoder:
            self.encoder = read_resnet(part)
            if self.encoder["stem"] == "small":
                self.size = 32
                self.encoder |= {"mean": CIFAR_MEAN, "std": CIFAR_STD}
        channels = part.need("conv1.weight").tensor.shape[1]
        if channels != in_channels:
            raise part.refuse("conv1.weight", f"this format's encoder sees {in_channels} channels, not {channels}")
        self.place(part, f"{to}.backbone")

    def place_projector(self, part: Part, to: str = "projector", *, bias: bool = True) -> Projector:
        """Put a projector; the first one says what the method's config is."""
        found = read_projector(part, bias=bias)
        self._places.append((f"{to}.", part))
        self.pieces |= {f"{to}.{name}": piece for name, piece in found.pieces.items()}
        for name in found.zero_biases:
            weight = found.pieces[name.replace("bias", "weight")]
            self.pieces[f"{to}.{name}"] = Piece(torch.zeros(weight.tensor.shape[0]), f"{weight.origin} (no bias)")
        if found.zero_biases:
            self.notes.append(f"{to}: biases are zero, the file's layers have none")
        self.projector = self.projector or found
        return found

    def place_mlp(self, part: Part, *, bias: bool = True) -> dict[str, Any]:
        """Put the projector of SimCLR, where one linear layer is an MLP too, and give the fields of its config."""
        found = self.place_projector(part, bias=bias)
        if not found.linear:
            return found.values(found.widths[0])
        for name in ("weight", "bias"):
            self.pieces[f"projector.0.{name}"] = self.pieces.pop(f"projector.{name}")
        return {"projection_dim": found.widths[-1], "projection_layers": 1}

    def linear(self, projector: Projector, part: Part, method: str) -> dict[str, Any]:
        """The field of a method whose projector is one layer.

        Raises:
            SagaError: it has more.
        """
        if not projector.linear:
            raise SagaError(
                f"{self.path}: {part.prefix} has {len(projector.widths) - 1} layers, {method} here a linear projector"
            )
        return {"projection_dim": projector.widths[-1]}

    def copy_to_keys(self) -> None:
        """The key encoder starts as the query encoder's copy."""
        for ours, keys in (("encoder.", "key_encoder."), ("projector.", "key_projector.")):
            self.pieces |= {
                keys + name.removeprefix(ours): piece for name, piece in self.pieces.items() if name.startswith(ours)
            }
        self.fresh["key_"] = "key encoder (EMA): a copy of the query encoder"

    def origin(self, name: str) -> str:
        """What the file would call our tensor, where a part of the file says so."""
        for prefix, part in self._places:
            if name.startswith(prefix):
                return part.origin(name.removeprefix(prefix))
        return name

    def fail(self, message: str) -> SagaError:
        """An error about the file, to be raised."""
        return SagaError(f"{self.path}: {message}")


def resnet_and_head(
    draft: Draft, tensors: Tensors, prefix: str, head: str, *, renames: Renames = (), keys: bool = False
) -> Projector:
    """A ResNet whose last layer ``head`` is the projector; ``keys``: they are the key encoder's."""
    ours = "key_" if keys else ""
    projector = draft.place_projector(tensors.take(f"{prefix}{head}."), f"{ours}projector")
    draft.place_resnet(tensors.take(prefix, renames=renames), f"{ours}encoder")
    return projector
