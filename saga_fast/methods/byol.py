"""BYOL (Grill et al., "Bootstrap your own latent: a new approach to self-supervised learning", NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.methods.heads import check_widths, mlp
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.methods.momentum import average_of, check_momentum, cosine_momentum, move_averages
from saga_fast.models.encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(MethodConfig):
    """BYOL's hyperparameters (section 3.3)."""

    name: str = "byol"
    projection_dim: int = 256
    hidden_dim: int = 4096
    """Width of the hidden layer of projector and predictor, which batch norm follows."""
    momentum: float = 0.996
    """Momentum of the target's moving average at a phase's beginning; at its end it is 1. The code has 0.996 for 1000
    epochs, 0.99 for 100 and 300."""

    def __post_init__(self) -> None:
        check_widths(self.projection_dim, self.hidden_dim)
        check_momentum("momentum", self.momentum)


class BYOL(Method):
    """From one view, the online network predicts the projection of the other view by its own moving average.

    Online are the encoder f, the projector g and the predictor q, the target network is f' and g'. Attention and
    evaluation use f and g. Each view has a forward pass, and so batch statistics, of its own, as in the official code.
    Its two views are augmented differently: the config's ``second_photometric``. The last layers of the heads have a
    bias, as in lightly; the code's have none, the paper does not tell.
    """

    Config: ClassVar[type[MethodConfig]] = BYOLConfig
    sync_batchnorm: ClassVar[bool] = True  # the code's statistics cover all devices

    def __init__(self, config: BYOLConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, Encoder(encoder))
        dim, hidden, out = self.encoder.dim, config.hidden_dim, config.projection_dim
        self.momentum = config.momentum
        self.projector = mlp(dim, hidden, out, norm="hidden")
        self.predictor = mlp(out, hidden, out, norm="hidden")
        self.target_encoder, self.target_projector = average_of(self.encoder), average_of(self.projector)

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:  # noqa: ARG002 - no bank
        """See :meth:`Method.forward`: the loss of both directions (section 3.1)."""
        first, second = views.unbind(1)
        cosine = 0.5 * (self._predict(first, self._target(second)) + self._predict(second, self._target(first)))
        return StepOutput(4.0 - 4.0 * cosine, cosine.detach())

    def _predict(self, view: Tensor, target: Tensor) -> Tensor:
        """The mean cosine similarity of the predictions from a view (B, 3, S, S) with unit targets (B, D).

        Eq. 2's loss of one direction is 2 - 2 of it: the squared distance of unit vectors.
        """
        prediction = self.in_parts(view, self.encoder, self.projector, self.predictor)
        return (F.normalize(prediction.float(), dim=1) * target).sum(1).mean()

    @torch.no_grad()
    def _target(self, view: Tensor) -> Tensor:
        """The projections of a view (B, 3, S, S) by the target network, L2-normalised: (B, D) float32."""
        return F.normalize(self.in_parts(view, self.target_encoder, self.target_projector).float(), dim=1)

    def after_step(self) -> None:
        """Move the target towards the online network (Eq. 1), the more slowly the later in the phase (section 3.3)."""
        targets, online = (self.target_encoder, self.target_projector), (self.encoder, self.projector)
        move_averages(targets, online, cosine_momentum(self.momentum, self.progress.phase))
