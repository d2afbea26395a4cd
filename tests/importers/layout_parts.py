"""A layout: the content of another project's checkpoint and what its import has to give; and parts of such files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES = 41
"""Images in the data set of the tests."""
QUEUE = 16
"""Keys in a queue of the tests."""


@dataclass
class Layout:
    """A file and what it has to become. ``z`` has one entry per branch (CMC: two)."""

    content: dict[str, Any]
    format: str
    method: str
    z: list[Callable[[Tensor], Tensor]]
    expected: dict[str, Tensor] = field(default_factory=dict)
    """Our names -> tensors besides the network's."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """Fields of the method's config."""
    printed: tuple[str, ...] = ()


def state(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in module.state_dict().items()}


def rows(count: int, width: int = 12, seed: int = 3) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def optimizer(module: nn.Module) -> dict[str, Any]:
    """The state of an optimiser after a step."""
    weight = next(module.parameters())
    sgd = torch.optim.SGD([weight], lr=0.03, momentum=0.9)
    weight.grad = torch.zeros_like(weight)
    sgd.step()
    weight.grad = None
    return sgd.state_dict()
