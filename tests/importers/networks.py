"""Plain networks in other projects' naming, at small width, with random weights and statistics."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

M = TypeVar("M", bound=nn.Module)
WIDTHS = (8, 8, 12, 16)


def randomize(module: M, seed: int = 0) -> M:
    """Weights of a sensible size and statistics that are not 0 and 1, so that a swapped tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.ndim == 1:
                tensor.uniform_(-0.3, 0.3, generator=generator)
                if name.endswith("weight"):
                    tensor.add_(1.0)
            else:
                tensor.normal_(0.0, (2.0 / tensor[0].numel()) ** 0.5, generator=generator)
    return module.eval()


def torchvision_resnet(
    num_classes: int = 12,
    *,
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    layers: Sequence[int] = (1, 1, 1, 1),
    widths: Sequence[int] = WIDTHS,
    stem: int = 64,
    in_channels: int = 3,
    small: bool = False,
    padding: int = 1,
) -> ResNet:
    """torchvision's ResNet, its layers made anew at small width; ``small``: with a 3x3 stem, no pooling."""
    with torch.device("meta"):  # its own layers take time to initialise, and are replaced
        model = ResNet(block, [1, 1, 1, 1])
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.inplanes = stem
    model.conv1 = nn.Conv2d(in_channels, stem, 7, 2, 3, bias=False)
    if small:
        model.conv1 = nn.Conv2d(in_channels, stem, 3, 1, padding, bias=False)
        model.maxpool = nn.Identity()
    model.bn1 = nn.BatchNorm2d(stem)
    for number, (width, count) in enumerate(zip(widths, layers, strict=True), 1):
        setattr(model, f"layer{number}", model._make_layer(block, width, count, stride=1 if number == 1 else 2))
    model.fc = nn.Linear(widths[-1] * block.expansion, num_classes)
    return model


def encoder(**arguments: object) -> ResNet:
    """The same without a last layer."""
    model = torchvision_resnet(**arguments)  # type: ignore[arg-type]
    model.fc = nn.Identity()
    return model


class Normalize(nn.Module):
    """z / |z|, the last layer of many a projector."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def dim(backbone: ResNet) -> int:
    with torch.no_grad():
        return int(backbone.eval()(torch.zeros(1, backbone.conv1.in_channels, 32, 32)).shape[1])


def mlp(width: int, hidden: int, out: int, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, out, bias=bias))


class CifarBlock(nn.Module):
    """The basic block of CIFAR code, whose skip connection is called ``shortcut``."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet with a 3x3 stem and the last layer ``linear`` (Inv. Spread, lemniscate)."""

    def __init__(self, num_classes: int = 12, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for number, width in enumerate(widths, 1):
            first = CifarBlock(before, width, 1 if number == 1 else 2)
            setattr(self, f"layer{number}", nn.Sequential(first, CifarBlock(width, width, 1)))
            before = width
        self.linear = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """z before its L2 normalisation."""
        out = F.relu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3, 4):
            out = self.get_submodule(f"layer{number}")(out)
        return self.linear(out.mean((2, 3)))  # type: ignore[no-any-return]
