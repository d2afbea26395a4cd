"""What every method is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from saga_fast.encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which method; every method adds its own fields."""

    name: str


@dataclass(frozen=True)
class StepOutput:
    """What a training step needs from a method: both are scalars, the loss with its graph."""

    loss: Tensor
    positive_similarity: Tensor


class Method(nn.Module):
    """A contrastive method: an encoder f, a projector g with z = g(f(x)) before any L2 normalisation, and a loss.

    Subclasses implement :meth:`forward`, and :meth:`after_step` if they keep a queue or a bank. Everything that a
    resumed run needs is in ``state_dict()``.

    Attributes:
        encoder: f.
        projector: g.
        num_views: views per image that :meth:`forward` takes.
        method: the method's name, its key in ``METHODS``.
    """

    Config: ClassVar[type[MethodConfig]]
    num_views: ClassVar[int] = 2
    projector: nn.Module

    def __init__(self, config: MethodConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.method = config.name
        self.encoder = Encoder(encoder)

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:
        """The loss of a batch: views (B, V, 3, S, S) float, index (B,) int64."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimiser step: queues and banks take the step's features."""
