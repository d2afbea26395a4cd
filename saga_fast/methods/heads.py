"""Projectors that several methods share, and the checks of their hyperparameters."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

from torch import nn

Norm = Literal["none", "hidden", "all"]
"""The linear layers of a projector that batch norm follows; such a layer has no bias."""
MAX_LAYERS, MAX_WIDTH, MAX_COUNT = 64, 2**20, 2**31
"""Of a projector, and of a queue, of negatives and of classes: a config must not allocate terabytes."""


def mlp(in_dim: int, hidden_dim: int, out_dim: int, *, layers: int = 2, norm: Norm = "none") -> nn.Sequential:
    """An MLP with ReLU: the projector of SimCLR (Chen et al. 2020, section 2.1) and of MoCo v2.

    SimCLR v2 has three layers; SimCLR's TensorFlow code and lightly put batch norm after all of them.
    """
    modules: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise([in_dim, *[hidden_dim] * (layers - 1), out_dim]), 1):
        normed = norm == "all" or (norm == "hidden" and number < layers)
        modules.append(nn.Linear(before, after, bias=not normed))
        if normed:
            modules.append(nn.BatchNorm1d(after))
        if number < layers:
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)


def check_mlp(layers: int, norm: str) -> None:
    """Check the hyperparameters of :func:`mlp`.

    Raises:
        ValueError: no layer, more than MAX_LAYERS, or an unknown ``norm``.
    """
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"projection_layers must be in 1 to {MAX_LAYERS}, got {layers}")
    if norm not in get_args(Norm):
        raise ValueError(f"projection_norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")


def check_widths(projection_dim: int, hidden_dim: int | None) -> None:
    """Check the widths of a projector.

    Raises:
        ValueError: a width below 1 or above MAX_WIDTH; ``hidden_dim`` may be None, the encoder's output.
    """
    for name, width in (("projection_dim", projection_dim), ("hidden_dim", hidden_dim)):
        if width is not None and not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"{name} must be in 1 to {MAX_WIDTH}, got {width}")


def check_temperature(temperature: float) -> None:
    """Check that a temperature is positive and finite; ValueError if not."""
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_count(name: str, count: int, least: int = 1) -> None:
    """Check a number of negatives, of a queue's rows or of classes.

    Raises:
        ValueError: below ``least`` or above MAX_COUNT.
    """
    if not least <= count <= MAX_COUNT:
        raise ValueError(f"{name} must be in {least} to {MAX_COUNT}, got {count}")
