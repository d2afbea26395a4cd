"""MoCo v2 (Chen et al., "Improved baselines with momentum contrastive learning", 2020): MoCo with SimCLR's projector,
a higher temperature and, in its config, stronger augmentation and a cosine schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from saga_fast.methods.heads import Norm, check_mlp, check_widths, mlp
from saga_fast.methods.method import MethodConfig
from saga_fast.methods.moco import MoCo, MoCoConfig


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config(MoCoConfig):
    """MoCo v2's hyperparameters."""

    name: str = "mocov2"
    temperature: float = 0.2
    hidden_dim: int | None = None
    """Width of the projector's hidden layers; default: the encoder's output."""
    projection_layers: int = 2
    """Linear layers of the projector; SimCLR v2 has 3."""
    projection_norm: Norm = "none"
    """The linear layers that batch norm follows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.projection_dim, self.hidden_dim)
        check_mlp(self.projection_layers, self.projection_norm)

    def new_projector(self, dim: int) -> nn.Module:
        """See :meth:`MoCoConfig.new_projector`."""
        return mlp(
            dim,
            self.hidden_dim or dim,
            self.projection_dim,
            layers=self.projection_layers,
            norm=self.projection_norm,
        )


class MoCoV2(MoCo):
    """See :class:`MoCo`."""

    Config: ClassVar[type[MethodConfig]] = MoCoV2Config
