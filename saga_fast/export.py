"""The encoder in other projects' names, for their linear-probe and detection code."""

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
from saga_fast.models.encoder import Encoder
from saga_fast.runtime.files import replacing

Target = Literal["torchvision", "timm", "moco"]
Branch = Literal["luminance", "chrominance"]


def export_state(
    model: Method, target: Target, *, with_head: bool = False, branch: Branch | None = None
) -> dict[str, Tensor]:
    """The encoder's tensors in another project's names.

    Args:
        model: what :func:`saga_fast.load_model` gave.
        target: ``timm``: names of timm. ``torchvision``: names of torchvision's ResNets. ``moco``: those behind
            ``module.encoder_q.``, with the projector as ``fc``, as facebookresearch/moco has them.
        with_head: ``torchvision`` and ``timm``: the projector too, as the last layer ``fc`` (of an MLP ``fc.0``,
            ``fc.2``), which the receiver has to have built.
        branch: which of CMC's two encoders.

    Raises:
        SagaError: a network that ``target`` cannot express.
    """
    encoder, projector = _parts(model, branch)
    if target != "timm" and not isinstance(encoder.backbone, ResNet):
        raise SagaError(
            f"--to {target} has names for ResNets only, not for {type(encoder.backbone).__name__}: --to timm"
        )
    if target == "torchvision" or target == "moco":
        _check_torchvision(encoder.backbone, target)
    state = {name: tensor.detach().clone() for name, tensor in encoder.backbone.state_dict().items()}
    if with_head or target == "moco":
        last = encoder.backbone.default_cfg["classifier"] if target == "timm" else "fc"
        state |= {f"{last}.{name}": tensor.detach().clone() for name, tensor in projector.state_dict().items()}
    return {f"module.encoder_q.{name}": tensor for name, tensor in state.items()} if target == "moco" else state


def write_export(path: Path, state: dict[str, Tensor], target: Target, *, arch: str, epoch: int) -> None:
    """Write a state dict: safetensors by the name's ending, else torch's format; ``moco`` with ``arch``, ``epoch``.

    Raises:
        SagaError: ``moco`` as safetensors.
        OSError: the folder cannot be written or the disk is full.
    """
    if path.suffix == ".safetensors":
        if target == "moco":
            raise SagaError(f"--to moco is a torch file with arch and epoch, not {path.name}")
        content = safetensors_bytes({name: tensor.contiguous() for name, tensor in state.items()})
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return
    whole: dict[str, Any] = {"arch": arch, "epoch": epoch, "state_dict": state} if target == "moco" else state
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(whole, file)


def _parts(model: Method, branch: Branch | None) -> tuple[Encoder, nn.Module]:
    if isinstance(model.encoder, ColorPair):
        if branch is None:
            raise SagaError("CMC has two encoders: choose one with --branch luminance or chrominance")
        encoder, projector = getattr(model.encoder, branch), getattr(model.projector, branch)
        assert isinstance(encoder, Encoder)
        assert isinstance(projector, nn.Module)
        return encoder, projector
    if branch is not None:
        raise SagaError(f"--branch is for CMC, method {model.method} has one encoder")
    return model.encoder, model.projector


def _check_torchvision(backbone: ResNet, target: Target) -> None:
    """timm's other ResNets (deep stems, average-pooled shortcuts, attention) have layers that torchvision's lack."""
    plain = isinstance(backbone.conv1, nn.Conv2d) and not any(
        ".se." in name or "downsample.2." in name or (name.endswith("downsample.1.weight") and tensor.ndim == 4)
        for name, tensor in backbone.state_dict().items()
    )
    if not plain:
        raise SagaError(f"--to {target}: torchvision has no ResNet like this one of timm's: --to timm")
