"""Which network tensors belong to: a ResNet's shape and a projector's, read from the shapes of the weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.importers.tensors import Part, Piece
from saga_fast.methods.heads import Norm

DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
PLANES = (64, 128, 256, 512)
STAGES = ("layer1", "layer2", "layer3", "layer4")


def read_resnet(part: Part) -> dict[str, Any]:
    """The encoder's config (name, stem, args, ...) of a ResNet in torchvision's names, which are timm's.

    A number of channels is what most tensors that have it say, so that one tensor of another shape is found out later,
    by its own name.

    Raises:
        SagaError: tensors of another network, or a first convolution that is neither 7x7 nor 3x3.
    """
    kernel = part.need("conv1.weight")
    if kernel.tensor.ndim != 4 or kernel.tensor.shape[-1] not in (3, 7):
        raise part.refuse("conv1.weight", "a ResNet's first convolution here is 7x7 or 3x3")
    depths = tuple(len({name.split(".")[1] for name in part if name.startswith(f"{stage}.")}) for stage in STAGES)
    if 0 in depths:
        raise SagaError(f"{part.path} lacks {part.origin(STAGES[depths.index(0)] + '.0.conv1.weight')}")
    bottleneck = any(".conv3." in name for name in part)
    last = "3" if bottleneck else "2"
    outputs = [_most(part, stage, (f"conv{last}.weight", f"bn{last}.weight", f"bn{last}.bias")) for stage in STAGES]
    planes = [output // (4 if bottleneck else 1) for output in outputs]
    args: dict[str, Any] = {}
    name = DEPTHS.get((bottleneck, depths))
    if name is None:
        name = "resnet50" if bottleneck else "resnet18"
        args["layers"] = list(depths)
    if tuple(planes) != PLANES:
        args["channels"] = planes
    if bottleneck:
        inner = _most(part, "layer1", ("conv1.weight", "bn1.weight", "bn1.bias", "bn2.weight", "conv2.weight"))
        groups = inner // part.need("layer1.0.conv2.weight").tensor.shape[1]
        base_width = inner // groups * 64 // planes[0]
        if (groups, base_width) != (1, 64):
            args |= {"cardinality": groups, "base_width": base_width}
    stem = _most(part, "", ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean"))
    found = {"name": name, "stem": "imagenet" if kernel.tensor.shape[-1] == 7 else "small"}
    return found | ({"stem_channels": stem} if stem != 64 else {}) | ({"args": args} if args else {})


def _most(part: Part, stage: str, tensors: tuple[str, ...]) -> int:
    """The commonest first dimension of tensors of a stage's blocks ("": of the stem)."""
    names = [
        name for name in part if (name in tensors if not stage else name.startswith(stage) and name.endswith(tensors))
    ]
    exact = [name for name in names if not stage or name.split(".", 2)[-1] in tensors]
    votes = Counter(part[name].tensor.shape[0] for name in exact if part[name].tensor.ndim)
    if not votes:
        raise SagaError(f"{part.path} lacks {part.origin(f'{stage}.0.{tensors[0]}' if stage else tensors[0])}")
    return votes.most_common(1)[0][0]


@dataclass(frozen=True)
class Projector:
    """A projector in our names: ``weight``, ``bias`` of a linear one, ``0.weight``, ... of an :func:`mlp`."""

    widths: tuple[int, ...]
    """Input, hidden, output."""
    norm: Norm
    pieces: dict[str, Piece]
    zero_biases: tuple[str, ...] = ()
    """Ours, which the source's layers do not have."""

    @property
    def linear(self) -> bool:
        """Whether it is a single layer."""
        return len(self.widths) == 2

    def values(self, dim: int) -> dict[str, Any]:
        """Fields of the method's config; ``dim`` is the encoder's output."""
        found: dict[str, Any] = {"projection_dim": self.widths[-1]}
        if not self.linear:
            found |= {"hidden_dim": self.widths[1]} if self.widths[1] != dim else {}
            found |= {"projection_layers": len(self.widths) - 1} if len(self.widths) != 3 else {}
            found |= {"projection_norm": self.norm} if self.norm != "none" else {}
        return found


def read_projector(part: Part, *, bias: bool = True) -> Projector:
    """Linear layers, with or without batch norm, ReLU between them (which no tensor shows).

    Args:
        part: ``weight``, ``bias``, or numbered modules as ``nn.Sequential`` names them.
        bias: whether the source's linear layers without batch norm have biases; where they do not, ours are zero.

    A bias before batch norm moves into the norm's running mean: it changes nothing but that.

    Raises:
        SagaError: a missing tensor, shapes that do not follow each other, or layers of unequal hidden widths.
    """
    if not any("." in name for name in part):
        return _linear(part, "", bias)
    for name, piece in part.items():
        if not name.split(".")[0].isdigit():
            raise SagaError(f"{part.path} has a tensor that a projector lacks: {piece.origin}")
    order = sorted({name.split(".")[0] for name in part}, key=int)
    if len(order) == 1:
        return _linear(part, f"{order[0]}.", bias)
    norms = {number for number in order if f"{number}.running_mean" in part or f"{number}.running_var" in part}
    linears = [number for number in order if number not in norms]
    for before, number in pairwise(["", *order]):
        if number in norms and (before in norms or not before):
            raise SagaError(f"{part.path} lacks {part.origin(f'{int(number) - 1}.weight')}")
    pieces, zero, normed, position = {}, [], [], 0
    for index, number in enumerate(linears):
        after = order[order.index(number) + 1 :][:1]
        norm = after[0] if after and after[0] in norms else None
        weight, own_bias = part.need(f"{number}.weight"), part.get(f"{number}.bias")
        pieces[f"{position}.weight"] = weight
        if norm is None:
            if bias:
                pieces[f"{position}.bias"] = part.need(f"{number}.bias")
                _same_width(part, weight, pieces[f"{position}.bias"])
            elif own_bias is not None:
                raise part.refuse(f"{number}.bias", "a bias that this format's projector does not have")
            else:
                zero.append(f"{position}.bias")
        else:
            position += 1
            for name in ("weight", "bias", "running_mean", "running_var"):
                pieces[f"{position}.{name}"] = part.need(f"{norm}.{name}")
            if f"{norm}.num_batches_tracked" in part:
                pieces[f"{position}.num_batches_tracked"] = part[f"{norm}.num_batches_tracked"]
            mean = pieces[f"{position}.running_mean"]
            _same_width(part, weight, mean)
            if own_bias is not None:
                _same_width(part, weight, own_bias)
                pieces[f"{position}.running_mean"] = Piece(mean.tensor - own_bias.tensor, mean.origin)
            normed.append(index)
        position += 2
    used = {piece.origin for piece in pieces.values()} | {part[name].origin for name in part if name.endswith(".bias")}
    for piece in part.values():
        if piece.origin not in used:
            raise SagaError(f"{part.path} has a tensor that a projector lacks: {piece.origin}")
    widths = _widths(part, linears)
    last = len(linears) - 1
    return Projector(widths, _norm(part, normed, last), pieces, tuple(zero))


def _linear(part: Part, prefix: str, bias: bool) -> Projector:
    weight = part.need(f"{prefix}weight")
    if weight.tensor.ndim != 2:
        raise part.refuse(f"{prefix}weight", "a linear layer's is (out, in)")
    if bias:
        _same_width(part, weight, part.need(f"{prefix}bias"))
    pieces = {name.removeprefix(prefix): piece for name, piece in part.items()}
    outputs, inputs = weight.tensor.shape
    return Projector((inputs, outputs), "none", pieces, () if bias else ("bias",))


def _same_width(part: Part, weight: Piece, other: Piece) -> None:
    if other.tensor.shape != weight.tensor.shape[:1]:
        raise SagaError(
            f"{part.path}: {weight.origin} has shape {tuple(weight.tensor.shape)}, {other.origin}"
            f" {tuple(other.tensor.shape)}"
        )


def _widths(part: Part, linears: list[str]) -> tuple[int, ...]:
    names = [f"{number}.weight" for number in linears]
    for name in names:
        if part[name].tensor.ndim != 2:
            raise part.refuse(name, "a linear layer's is (out, in)")
    for first, second in pairwise(names):
        if part[first].tensor.shape[0] != part[second].tensor.shape[1]:
            raise part.refuse(second, f"after {part[first].origin} of shape {tuple(part[first].tensor.shape)}")
    hidden = [part[name].tensor.shape[0] for name in names[:-1]]
    if len(set(hidden)) > 1:
        raise part.refuse(names[1], f"projectors here have hidden layers of one width, not {hidden}")
    return (part[names[0]].tensor.shape[1], *hidden, part[names[-1]].tensor.shape[0])


def _norm(part: Part, normed: list[int], last: int) -> Norm:
    if not normed:
        return "none"
    if normed == list(range(last + 1)):
        return "all"
    if normed == list(range(last)):
        return "hidden"
    raise SagaError(f"{part.path}: projectors here have batch norm after all layers or all hidden ones: {part.prefix}")
