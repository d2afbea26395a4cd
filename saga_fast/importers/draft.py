"""The imported model under construction: a format's reader fills it tensor by tensor."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.errors import SagaError
from saga_fast.importers.networks import Projector, read_projector, read_resnet
from saga_fast.importers.tensors import NamedTensor, Part, Renames, Tensors
from saga_fast.importers.vit import is_vit, read_vit

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)
CIFAR_INPUT = "CIFAR-10's, assumed because of the 3x3 first convolution"
COPIES = {
    "moco": ("key_", "key encoder (EMA): a copy of the query encoder"),
    "mocov2": ("key_", "key encoder (EMA): a copy of the query encoder"),
    "byol": ("target_", "target network (EMA): a copy of the online network"),
    "dino": ("student_", "student: a copy of the teacher"),
}
"""Method -> prefix of a second encoder and projector, and a message for a file that has one of each."""


class Draft:
    """The config fields and tensors of a saga-fast model, read from another project's file.

    Attributes:
        path: the file.
        requested_method, requested_encoder: names from the user, for files that do not determine them.
        method, encoder: fields of the two configs.
        size: side of the training images, pixels.
        input_origin: where ``size`` and the encoder's ``mean`` and ``std`` are from, in words.
        epoch: finished epochs.
        tensors: tensors by their names in saga-fast.
        fresh: prefix of names in saga-fast -> message; these tensors start fresh if the file lacks them.
        dropped, notes: lines for the user.
        boxes: boxes of ContrastiveCrop, (N, 4) [h_min, w_min, h_max, w_max], normalised.
    """

    def __init__(
        self,
        path: Path,
        content: Mapping[str, Any],
        *,
        requested_method: str | None = None,
        requested_encoder: str | None = None,
        fresh_memory: bool = False,
    ) -> None:
        self._fresh_memory = fresh_memory
        self.path, self.requested_method, self.requested_encoder = path, requested_method, requested_encoder
        self._content = content
        self._used = {"epoch", "arch", "format", "version"}
        self.method: dict[str, Any] = {}
        self.encoder: dict[str, Any] = {}
        self.size = 224
        self.input_origin = "ImageNet's, as in the project's code"
        self.epoch = 0
        self.tensors: dict[str, NamedTensor] = {}
        self.fresh: dict[str, str] = {}
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.boxes: npt.NDArray[np.float32] | None = None
        self._placed: list[tuple[str, Part]] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def entry(self, key: str) -> Any:
        """A top-level entry of the file, None if missing; counts as used."""
        self._used.add(key)
        return self._content.get(key)

    def holds(self, key: str) -> bool:
        """Whether a top-level entry is neither missing, None nor an empty dictionary; counts as used."""
        value = self.entry(key)
        return value is not None and not (isinstance(value, Mapping) and not value)

    def options(self, key: str) -> Mapping[str, Any]:
        """The command line's options in an entry, by name; none if it is missing.

        Raises:
            SagaError: it holds something else.
        """
        options = self.entry(key)
        if isinstance(options, Namespace):
            options = vars(options)
        if not isinstance(options, Mapping | None):
            raise self.error(f"{key} is a {type(options).__name__}, expected options")
        return {key: value for key, value in (options or {}).items() if not isinstance(value, torch.Tensor)}

    def state_dict(self, *keys: str) -> Tensors:
        """The state dict at the nested ``keys``; without keys the file itself is one."""
        state: Any = self._content
        if not keys:
            self._used.update(self._content)
        for depth, key in enumerate(keys):
            if not isinstance(state, Mapping) or key not in state:
                raise SagaError(f"{self.path} lacks {'.'.join(keys[: depth + 1])}")
            self._used.add(key)
            state = state[key]
        return Tensors(self.path, state, at="".join(f"{key}." for key in keys))

    def take_memory(self, tensors: Tensors, name: str) -> NamedTensor | None:
        """A memory bank, a queue or its pointer, None if the user wants a new one.

        Raises:
            SagaError: the file lacks it.
        """
        named = tensors.pop(name)
        if named is None and not self._fresh_memory:
            raise SagaError(f"{self.path} lacks {tensors.origin(name)}: start a new one with --fresh-memory")
        return None if self._fresh_memory else named

    def unused_entries(self) -> list[str]:
        """The top-level entries of the file that were not used."""
        return [key for key in self._content if key not in self._used]

    def place(self, part: Part, to: str) -> None:
        """Put the tensors of ``part`` into module ``to``."""
        self._placed.append((f"{to}.", part))
        self.tensors |= {f"{to}.{name}": named for name, named in part.items()}

    def place_resnet(self, part: Part, to: str = "encoder", *, in_channels: int = 3) -> None:
        """Put a ResNet with torchvision's names; the first one determines the encoder's config.

        A 3x3 first convolution is taken as CIFAR's: images of 32 px with CIFAR's mean and standard deviation.
        """
        if not self.encoder:
            self.encoder = read_resnet(part)
            if self.encoder["stem"] == "small":
                self.size = 32
                self.encoder |= {"mean": CIFAR_MEAN, "std": CIFAR_STD}
                self.input_origin = CIFAR_INPUT
        shape = part.need("conv1.weight").tensor.shape
        if len(shape) != 4 or shape[1] != in_channels:
            raise part.shape_error("conv1.weight", f"expected a convolution of {in_channels} input channels")
        self.place(part, f"{to}.backbone")

    def place_backbone(self, part: Part, to: str = "encoder", *, heads: int | None = None) -> None:
        """Put a vision transformer or a ResNet; ``heads``: a transformer's attention heads, one per 64 channels."""
        if not is_vit(part):
            self.place_resnet(part, to)
            return
        config, size = read_vit(part, heads=heads)
        if not self.encoder:
            self.encoder, self.size = config, size
        self.place(part, f"{to}.backbone")

    def place_projector(
        self, part: Part, to: str = "projector", *, bias: bool = True, affine: bool = True
    ) -> Projector:
        """Put a projector into module ``to`` and return it; see :func:`read_projector`."""
        projector = read_projector(part, bias=bias, affine=affine)
        self._placed.append((f"{to}.", part))
        self.tensors |= {f"{to}.{name}": named for name, named in projector.tensors.items()}
        for name in projector.zero_biases:
            weight = projector.tensors[name.replace("bias", "weight")]
            zeros = torch.zeros(weight.tensor.shape[0])
            self.tensors[f"{to}.{name}"] = NamedTensor(zeros, f"{weight.origin} (no bias)")
        if projector.zero_biases:
            self.notes.append(f"{to}: biases are zero, the file's layers have none")
        return projector

    def place_mlp(self, part: Part, *, bias: bool = True, affine: bool = True) -> dict[str, Any]:
        """Put the projector of SimCLR and return the fields of its config.

        SimCLR's projector is an MLP even if it has one layer, which is then ``projector.0``.
        """
        projector = self.place_projector(part, bias=bias, affine=affine)
        if not projector.is_linear:
            return projector.config(projector.widths[0])
        for name in ("weight", "bias"):
            self.tensors[f"projector.0.{name}"] = self.tensors.pop(f"projector.{name}")
        return {"projection_dim": projector.widths[-1], "projection_layers": 1}

    def linear_config(self, projector: Projector, part: Part, method: str) -> dict[str, Any]:
        """The fields of a method whose projector is a linear layer.

        Raises:
            SagaError: ``projector``, which was read from ``part``, has several layers.
        """
        if not projector.is_linear:
            raise SagaError(
                f"{self.path}: {part.prefix} has {len(projector.widths) - 1} layers, but the projector of {method} is"
                " linear"
            )
        return {"projection_dim": projector.widths[-1]}

    def copy_encoder(self, method: str) -> None:
        """Start the second encoder and projector of a method of COPIES as a copy of the first."""
        prefix, message = COPIES[method]
        self.tensors |= {
            prefix + name: named for name, named in self.tensors.items() if name.startswith(("encoder.", "projector."))
        }
        self.fresh[prefix] = message

    def origin(self, name: str) -> str:
        """The name in the file of a saga-fast tensor, or ``name`` if it comes from no part of the file."""
        for prefix, part in self._placed:
            if name.startswith(prefix):
                return part.origin(name.removeprefix(prefix))
        return name

    def error(self, message: str) -> SagaError:
        """An error with the file's path, for the caller to raise."""
        return SagaError(f"{self.path}: {message}")


def place_resnet_and_projector(
    draft: Draft, tensors: Tensors, prefix: str, head: str, *, renames: Renames = (), keys: bool = False
) -> Projector:
    """Put a ResNet whose last layer ``head`` is the projector, and return the projector.

    Args:
        draft: the model.
        tensors: the state dict.
        prefix: prefix of the ResNet's names.
        head: name of the last layer.
        renames: changes to the ResNet's names.
        keys: whether this is the key encoder.
    """
    target = "key_" if keys else ""
    projector = draft.place_projector(tensors.take(f"{prefix}{head}."), f"{target}projector")
    draft.place_resnet(tensors.take(prefix, renames=renames), f"{target}encoder")
    return projector
