"""Momentum encoders: moving averages of trained networks, for MoCo's keys, BYOL's target and DINO's teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def average_of(module: Module) -> Module:
    """The beginning of a module's moving average: a copy that no optimiser trains."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def move_averages(averages: Sequence[nn.Module], modules: Sequence[nn.Module], momentum: float) -> None:
    """Replace each average's parameters by ``momentum`` average + (1 - ``momentum``) module.

    Batch-norm statistics are not averaged: an average has those of its own forward passes, as in the official codes of
    MoCo, BYOL and DINO.
    """
    targets: list[Tensor] = [parameter for average in averages for parameter in average.parameters()]
    sources: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)


def cosine_momentum(base: float, finished: float) -> float:
    """1 - (1 - base) (cos(pi finished) + 1) / 2: from ``base`` to 1 along half a cosine.

    Grill et al. 2020, section 3.3, and Caron et al. 2021, section 3.1.

    Args:
        base: the momentum at the beginning.
        finished: fraction of the training steps that are finished, k / K.
    """
    return 1.0 - (1.0 - base) * (math.cos(math.pi * finished) + 1.0) / 2.0


def check_momentum(name: str, momentum: float) -> None:
    """Check the momentum of a moving average.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {momentum}")
