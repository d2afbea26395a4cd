"""The first layers of timm's ResNets for smaller images, and as other projects have them."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from saga_fast.errors import SagaError

Stem = Literal["imagenet", "medium", "small"]


def replace_stem(backbone: Any, name: str, stem: Stem, *, channels: int | None, padding: int) -> None:
    """Replace a ResNet's first convolution, and its max pooling unless ``stem`` is ``imagenet``.

    Args:
        backbone: one of timm's ResNets.
        name: its name in timm.
        stem: see :class:`saga_fast.models.encoder.EncoderConfig`.
        channels: outputs of the convolution; None: as many as it has.
        padding: of the convolution, for ``small`` and ``medium``.

    Raises:
        SagaError: another network.
    """
    first = getattr(backbone, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise SagaError(
            f"encoder.stem small or medium and stem_channels need a ResNet with one first convolution, not {name!r}"
        )
    channels = channels or first.out_channels
    if stem == "imagenet":
        backbone.conv1 = nn.Conv2d(first.in_channels, channels, 7, stride=2, padding=3, bias=False)
    else:
        stride = 1 if stem == "small" else 2
        backbone.conv1 = nn.Conv2d(first.in_channels, channels, 3, stride, padding, bias=False)
        backbone.maxpool = nn.Identity()
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet does
    if channels != first.out_channels:
        _connect_stem(backbone, channels)


def remove_stem_relu(backbone: Any, name: str) -> None:
    """Remove the ReLU after a ResNet's first batch norm.

    Raises:
        SagaError: another network.
    """
    if not isinstance(getattr(backbone, "act1", None), nn.ReLU):
        raise SagaError(f"encoder.stem_relu false needs a ResNet with a ReLU in its stem, not {name!r}")
    backbone.act1 = nn.Identity()


def _connect_stem(backbone: Any, channels: int) -> None:
    """Make a ResNet's first normalisation and first block take another number of channels."""
    backbone.bn1 = nn.BatchNorm2d(channels)
    block = backbone.layer1[0]
    first, last = block.conv1, block.bn3 if hasattr(block, "bn3") else block.bn2
    block.conv1 = nn.Conv2d(channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)
    block.downsample = None
    if channels != last.num_features:
        block.downsample = nn.Sequential(
            nn.Conv2d(channels, last.num_features, 1, bias=False), nn.BatchNorm2d(last.num_features)
        )
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
