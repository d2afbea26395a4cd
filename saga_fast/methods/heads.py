"""Projectors that several methods share, and the checks of their numbers."""

from __future__ import annotations

from torch import nn


def mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, ReLU, Linear: SimCLR's projection head (Chen et al. 2020, section 2.1) and MoCo v2's."""
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim))


def check_widths(projection_dim: int, hidden_dim: int | None) -> None:
    """Refuse a projector without width.

    Raises:
        ValueError: a width below 1; ``hidden_dim`` may be None, the encoder's output.
    """
    for name, width in (("projection_dim", projection_dim), ("hidden_dim", hidden_dim)):
        if width is not None and width < 1:
            raise ValueError(f"{name} must be at least 1, got {width}")


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` for a temperature that is not positive."""
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
