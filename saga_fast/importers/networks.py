"""The configs of ResNets and projectors, from the names and shapes of their tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from saga_fast.errors import SagaError
from saga_fast.importers.tensors import NamedTensor, Part
from saga_fast.methods.heads import Norm

DEPTHS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""(bottleneck blocks, blocks per stage) -> name in timm."""
PLANES = (64, 128, 256, 512)
STAGES = ("layer1", "layer2", "layer3", "layer4")


def read_resnet(part: Part) -> dict[str, Any]:
    """The encoder's config (name, stem, args, ...) of a ResNet with torchvision's names, which are timm's.

    The number of channels of a stage is that of most of its tensors: a single tensor of another shape is reported
    later, with its name.

    Raises:
        SagaError: tensors of another network, or a first convolution that is neither 7x7 nor 3x3.
    """
    kernel = part.need("conv1.weight")
    if kernel.tensor.ndim != 4 or kernel.tensor.shape[-1] not in (3, 7):
        raise part.shape_error("conv1.weight", "the first convolution of a ResNet must be 7x7 or 3x3")
    depths = tuple(len({name.split(".")[1] for name in part if name.startswith(f"{stage}.")}) for stage in STAGES)
    if 0 in depths:
        raise SagaError(f"{part.path} lacks {part.origin(STAGES[depths.index(0)] + '.0.conv1.weight')}")
    bottleneck = any(".conv3." in name for name in part)
    args = _resnet_args(part, depths, bottleneck=bottleneck)
    name = DEPTHS.get((bottleneck, depths), "resnet50" if bottleneck else "resnet18")
    config: dict[str, Any] = {"name": name, "stem": "imagenet" if kernel.tensor.shape[-1] == 7 else "small"}
    stem_channels = _most_common_width(part, "", ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean"))
    if stem_channels != 64:
        config["stem_channels"] = stem_channels
    return config | ({"args": args} if args else {})


def _resnet_args(part: Part, depths: tuple[int, ...], *, bottleneck: bool) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` in which a ResNet differs from its name's default."""
    last = "3" if bottleneck else "2"
    last_tensors = (f"conv{last}.weight", f"bn{last}.weight", f"bn{last}.bias")
    planes = [_most_common_width(part, stage, last_tensors) // (4 if bottleneck else 1) for stage in STAGES]
    args: dict[str, Any] = {}
    if (bottleneck, depths) not in DEPTHS:
        args["layers"] = list(depths)
    if tuple(planes) != PLANES:
        args["channels"] = planes
    if bottleneck:
        first_tensors = ("conv1.weight", "bn1.weight", "bn1.bias", "bn2.weight", "conv2.weight")
        inner = _most_common_width(part, "layer1", first_tensors)
        kernel = part.need("layer1.0.conv2.weight").tensor
        if kernel.ndim != 4 or 0 in (inner, planes[0], *kernel.shape):
            raise part.shape_error("layer1.0.conv2.weight", "expected that of a convolution")
        groups = inner // kernel.shape[1]
        base_width = inner // groups * 64 // planes[0]
        if (groups, base_width) != (1, 64):
            args |= {"cardinality": groups, "base_width": base_width}
    return args


def _most_common_width(part: Part, stage: str, tensors: tuple[str, ...]) -> int:
    """The most common first dimension of some tensors in the blocks of a stage; ``""`` is the stem."""
    # "layer1.0.conv1.weight" -> "conv1.weight"
    names = [name for name in part if name.startswith(stage) and (name.split(".", 2)[-1] if stage else name) in tensors]
    counts = Counter(part[name].tensor.shape[0] for name in names if part[name].tensor.ndim)
    if not counts:
        raise SagaError(f"{part.path} lacks {part.origin(f'{stage}.0.{tensors[0]}' if stage else tensors[0])}")
    return counts.most_common(1)[0][0]


@dataclass(frozen=True)
class Projector:
    """A projector with saga-fast's names.

    Attributes:
        widths: input, hidden layers, output.
        norm: where it has batch norm.
        tensors: ``weight`` and ``bias`` of a linear layer, or ``0.weight``, ... of :func:`saga_fast.methods.heads.mlp`.
        zero_biases: names of biases that the file's layers do not have.
    """

    widths: tuple[int, ...]
    norm: Norm
    tensors: dict[str, NamedTensor]
    zero_biases: tuple[str, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether it is a single layer."""
        return len(self.widths) == 2

    def config(self, encoder_dim: int) -> dict[str, Any]:
        """Fields of the method's config that differ from their defaults, and ``projection_dim``."""
        fields: dict[str, Any] = {"projection_dim": self.widths[-1]}
        if not self.is_linear:
            fields |= {"hidden_dim": self.widths[1]} if self.widths[1] != encoder_dim else {}
            fields |= {"projection_layers": len(self.widths) - 1} if len(self.widths) != 3 else {}
            fields |= {"projection_norm": self.norm} if self.norm != "none" else {}
        return fields


@dataclass(frozen=True)
class _Layer:
    """Module numbers of a linear layer and of the batch norm after it, as in ``nn.Sequential``."""

    linear: str
    norm: str | None


def read_projector(part: Part, *, bias: bool = True, affine: bool = True) -> Projector:
    """A projector of linear layers, with or without batch norm.

    The ReLUs between the layers have no tensors, so they are assumed. A bias before batch norm is subtracted from the
    norm's running mean, which gives the same output.

    Args:
        part: ``weight`` and ``bias``, or numbered modules as in ``nn.Sequential``.
        bias: whether the file's linear layers without batch norm have biases; if not, they are zero here.
        affine: whether the last batch norm has a scale and an offset; if not, they are 1 and 0 here.

    Raises:
        SagaError: a missing tensor, shapes that do not fit together, or hidden layers of unequal widths.
    """
    if not any("." in name for name in part):
        return _read_linear(part, "", bias)
    numbers = _module_numbers(part)
    if len(numbers) == 1:
        return _read_linear(part, f"{numbers[0]}.", bias)
    layers = _pair_layers(part, numbers)
    if not affine and (norm := layers[-1].norm) is not None:
        mean = part.need(f"{norm}.running_mean")
        origin = f"{mean.origin} (a batch norm without scale and offset)"
        part[f"{norm}.weight"] = NamedTensor(torch.ones_like(mean.tensor), origin)
        part[f"{norm}.bias"] = NamedTensor(torch.zeros_like(mean.tensor), origin)
    tensors: dict[str, NamedTensor] = {}
    zero_biases: list[str] = []
    position = 0
    for layer in layers:
        tensors[f"{position}.weight"] = part.need(f"{layer.linear}.weight")
        if layer.norm is not None:
            tensors |= _norm_tensors(part, layer, position + 1)
            position += 3  # linear layer, batch norm, ReLU
            continue
        if bias:
            tensors[f"{position}.bias"] = _matching_bias(part, layer)
        elif f"{layer.linear}.bias" in part:
            raise part.shape_error(f"{layer.linear}.bias", "a bias that this format's projector does not have")
        else:
            zero_biases.append(f"{position}.bias")
        position += 2  # linear layer, ReLU
    _check_all_used(part, tensors)
    widths = _widths(part, [layer.linear for layer in layers])
    return Projector(widths, _norm_kind(part, layers), tensors, tuple(zero_biases))


def _module_numbers(part: Part) -> list[str]:
    """The numbers of the modules, in ascending order."""
    for name, named in part.items():
        if not name.split(".")[0].isdigit():
            raise SagaError(f"{part.path} has a tensor that a projector lacks: {named.origin}")
    return sorted({name.split(".")[0] for name in part}, key=int)


def _pair_layers(part: Part, numbers: Sequence[str]) -> list[_Layer]:
    """The linear layers, each with the batch norm after it.

    Raises:
        SagaError: a batch norm without a linear layer before it.
    """
    norms = {number for number in numbers if f"{number}.running_mean" in part or f"{number}.running_var" in part}
    for previous, number in pairwise(["", *numbers]):
        if number in norms and (previous in norms or not previous):
            raise SagaError(f"{part.path} lacks {part.origin(f'{int(number) - 1}.weight')}")
    following = dict(pairwise(numbers))
    return [
        _Layer(number, following[number] if following.get(number) in norms else None)
        for number in numbers
        if number not in norms
    ]


def _norm_tensors(part: Part, layer: _Layer, position: int) -> dict[str, NamedTensor]:
    """The tensors of a layer's batch norm at ``position``; a linear bias moves into the running mean."""
    names = ["weight", "bias", "running_mean", "running_var"]
    tensors = {f"{position}.{name}": part.need(f"{layer.norm}.{name}") for name in names}
    if f"{layer.norm}.num_batches_tracked" in part:
        tensors[f"{position}.num_batches_tracked"] = part[f"{layer.norm}.num_batches_tracked"]
    mean = tensors[f"{position}.running_mean"]
    _check_same_width(part, part[f"{layer.linear}.weight"], mean)
    if f"{layer.linear}.bias" in part:
        bias = _matching_bias(part, layer)
        tensors[f"{position}.running_mean"] = NamedTensor(mean.tensor - bias.tensor, mean.origin)
    return tensors


def _matching_bias(part: Part, layer: _Layer) -> NamedTensor:
    """The bias of a linear layer, which must have the width of its weight."""
    bias = part.need(f"{layer.linear}.bias")
    _check_same_width(part, part[f"{layer.linear}.weight"], bias)
    return bias


def _check_all_used(part: Part, tensors: dict[str, NamedTensor]) -> None:
    """Check that all tensors of a projector were read; biases before batch norm are in the running mean.

    Raises:
        SagaError: a surplus tensor.
    """
    used = {named.origin for named in tensors.values()} | {part[name].origin for name in part if name.endswith(".bias")}
    for named in part.values():
        if named.origin not in used:
            raise SagaError(f"{part.path} has a tensor that a projector lacks: {named.origin}")


def _read_linear(part: Part, prefix: str, bias: bool) -> Projector:
    weight = part.need(f"{prefix}weight")
    if weight.tensor.ndim != 2:
        raise part.shape_error(f"{prefix}weight", "a linear layer's is (out, in)")
    if bias:
        _check_same_width(part, weight, part.need(f"{prefix}bias"))
    tensors = {name.removeprefix(prefix): named for name, named in part.items()}
    outputs, inputs = weight.tensor.shape
    return Projector((inputs, outputs), "none", tensors, () if bias else ("bias",))


def _check_same_width(part: Part, weight: NamedTensor, vector: NamedTensor) -> None:
    if vector.tensor.shape != weight.tensor.shape[:1]:
        raise SagaError(
            f"{part.path}: {weight.origin} has shape {tuple(weight.tensor.shape)}, {vector.origin}"
            f" {tuple(vector.tensor.shape)}"
        )


def _widths(part: Part, linears: Sequence[str]) -> tuple[int, ...]:
    """Input, hidden and output widths of the linear layers with these module numbers."""
    names = [f"{number}.weight" for number in linears]
    for name in names:
        if part[name].tensor.ndim != 2:
            raise part.shape_error(name, "a linear layer's is (out, in)")
    for first, second in pairwise(names):
        if part[first].tensor.shape[0] != part[second].tensor.shape[1]:
            raise part.shape_error(second, f"after {part[first].origin} of shape {tuple(part[first].tensor.shape)}")
    hidden = [part[name].tensor.shape[0] for name in names[:-1]]
    if len(set(hidden)) > 1:
        raise part.shape_error(names[1], f"hidden layers must have equal widths, not {hidden}")
    return (part[names[0]].tensor.shape[1], *hidden, part[names[-1]].tensor.shape[0])


def _norm_kind(part: Part, layers: Sequence[_Layer]) -> Norm:
    """Which layers have batch norm.

    Raises:
        SagaError: a combination that saga-fast's projectors do not have.
    """
    has_norm = [layer.norm is not None for layer in layers]
    if not any(has_norm):
        return "none"
    if all(has_norm):
        return "all"
    if all(has_norm[:-1]):
        return "hidden"
    raise SagaError(f"{part.path}: {part.prefix} must have batch norm after all layers, all hidden layers or no layer")
