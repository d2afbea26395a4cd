"""Export of the encoder with the tensor names of torchvision, timm or facebookresearch/moco."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as safetensors_bytes
from timm.models.resnet import ResNet
from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.methods import Method
from saga_fast.methods.cmc import ColorPair
from saga_fast.models.encoder import Encoder, EncoderConfig
from saga_fast.runtime.files import named, replacing

Target = Literal["torchvision", "timm", "moco"]
Branch = Literal["luminance", "chrominance"]

WIDER = {
    ("resnet50", 32, 4): "resnext50_32x4d",
    ("resnet101", 32, 8): "resnext101_32x8d",
    ("resnet101", 64, 4): "resnext101_64x4d",
    ("resnet50", 1, 128): "wide_resnet50_2",
    ("resnet101", 1, 128): "wide_resnet101_2",
}
"""(timm's name, groups, width of a group) -> torchvision's name."""


def export_state(
    model: Method, target: Target, *, with_head: bool = False, branch: Branch | None = None
) -> dict[str, Tensor]:
    """The encoder's tensors with the names of another project.

    Args:
        model: a model from :func:`saga_fast.load_model`.
        target: ``timm``: names of timm. ``torchvision``: names of torchvision's ResNets. ``moco``: names of
            facebookresearch/moco, which are torchvision's after ``module.encoder_q.``, and the projector as ``fc``.
        with_head: for ``torchvision`` and ``timm``, include the projector as the last layer ``fc``, or ``fc.0`` and
            ``fc.2`` for an MLP: the network that loads the file needs these layers.
        branch: which of CMC's two encoders.

    Raises:
        SagaError: a network that ``target`` does not have.
    """
    encoder, projector = _encoder_and_projector(model, branch)
    if target != "timm" and not isinstance(encoder.backbone, ResNet):
        raise SagaError(
            f"{type(encoder.backbone).__name__} is not a ResNet, --to {target} is for ResNets only: use --to timm"
        )
    if target == "torchvision" or target == "moco":
        _check_torchvision(encoder.backbone, target)
    state = {name: tensor.detach().clone() for name, tensor in encoder.backbone.state_dict().items()}
    if with_head or target == "moco":
        last = encoder.backbone.default_cfg["classifier"] if target == "timm" else "fc"
        state |= {f"{last}.{name}": tensor.detach().clone() for name, tensor in projector.state_dict().items()}
    return {f"module.encoder_q.{name}": tensor for name, tensor in state.items()} if target == "moco" else state


def torchvision_name(encoder: EncoderConfig) -> str:
    """torchvision's name of a ResNet, which differs from timm's where arguments make it wider or grouped."""
    shape = encoder.args.get("cardinality", 1), encoder.args.get("base_width", 64)
    return WIDER.get((encoder.name, *shape), encoder.name)


def write_export(path: Path, state: dict[str, Tensor], target: Target, *, arch: str, epoch: int) -> None:
    """Write a state dict to a safetensors file or a file of ``torch.save``.

    Args:
        path: the file; the format is safetensors if the name ends in ``.safetensors``.
        state: the tensors of :func:`export_state`.
        target: for ``moco`` the file also contains ``arch`` and ``epoch``.
        arch: torchvision's name of the encoder.
        epoch: finished epochs.

    Raises:
        SagaError: ``moco`` as safetensors.
        OSError: the folder cannot be written or the disk is full.
    """
    if path.suffix == ".safetensors":
        if target == "moco":
            raise SagaError(
                f"--to moco writes a file of torch.save with arch and epoch, not {path.name}: use another name"
            )
        content = safetensors_bytes({name: tensor.contiguous() for name, tensor in state.items()})
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return
    checkpoint: dict[str, Any] = {"arch": arch, "epoch": epoch, "state_dict": state} if target == "moco" else state
    with replacing(path) as temporary, named(path), temporary.open("wb") as file:
        torch.save(checkpoint, file)


def _encoder_and_projector(model: Method, branch: Branch | None) -> tuple[Encoder, nn.Module]:
    if isinstance(model.encoder, ColorPair):
        if branch is None:
            raise SagaError("CMC has two encoders: choose one with --branch luminance or chrominance")
        encoder, projector = getattr(model.encoder, branch), getattr(model.projector, branch)
        assert isinstance(encoder, Encoder)
        assert isinstance(projector, nn.Module)
        return encoder, projector
    if branch is not None:
        raise SagaError(f"method {model.method} has one encoder, --branch is for CMC: remove --branch")
    return model.encoder, model.projector


def _check_torchvision(backbone: ResNet, target: Target) -> None:
    """Check that torchvision has all layers of a ResNet.

    Raises:
        SagaError: a deep stem, average pooling in shortcuts, or attention blocks, which only timm has.
    """
    has_torchvision_layers = isinstance(backbone.conv1, nn.Conv2d) and not any(
        ".se." in name or "downsample.2." in name or (name.endswith("downsample.1.weight") and tensor.ndim == 4)
        for name, tensor in backbone.state_dict().items()
    )
    if not has_torchvision_layers:
        raise SagaError(f"--to {target}: torchvision has no ResNet like this one of timm, use --to timm")
