"""Projectors that several methods share, and the checks of their hyperparameters."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

from torch import nn

Norm = Literal["none", "hidden", "all"]
"""The linear layers of a projector that batch norm follows; such a layer has no bias."""


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
        ValueError: no layer, or an unknown ``norm``.
    """
    if layers < 1:
        raise ValueError(f"projection_layers must be at least 1, got {layers}")
    if norm not in get_args(Norm):
        raise ValueError(f"projection_norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")


def check_widths(projection_dim: int, hidden_dim: int | None) -> None:
    """Check the widths of a projector.

    Raises:
        ValueError: a width below 1; ``hidden_dim`` may be None, the encoder's output.
    """
    for name, width in (("projection_dim", projection_dim), ("hidden_dim", hidden_dim)):
        if width is not None and width < 1:
            raise ValueError(f"{name} must be at least 1, got {width}")


def check_temperature(temperature: float) -> None:
    """Check that a temperature is positive; ValueError if not."""
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
