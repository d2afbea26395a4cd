"""SimCLR (Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.methods.heads import Norm, check_mlp, check_temperature, check_widths, mlp
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.models.encoder import Encoder, EncoderConfig
from saga_fast.models.precision import autocast
from saga_fast.runtime.distributed import gather_with_gradient, rank


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(MethodConfig):
    """SimCLR's hyperparameters."""

    name: str = "simclr"
    temperature: float = 0.1
    projection_dim: int = 128
    hidden_dim: int | None = None
    """Width of the projector's hidden layers; default: the encoder's output."""
    projection_layers: int = 2
    """Linear layers of the projector; SimCLR v2 has 3."""
    projection_norm: Norm = "none"
    """The linear layers that batch norm follows."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_widths(self.projection_dim, self.hidden_dim)
        check_mlp(self.projection_layers, self.projection_norm)


class SimCLR(Method):
    """An image's two views attract each other and repel all other views of the batch."""

    Config: ClassVar[type[MethodConfig]] = SimCLRConfig
    sync_batchnorm: ClassVar[bool] = True  # section 2.2, "Global BN"

    def __init__(self, config: SimCLRConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, Encoder(encoder))
        self.temperature = config.temperature
        self.projector = mlp(
            self.encoder.dim,
            config.hidden_dim or self.encoder.dim,
            config.projection_dim,
            layers=config.projection_layers,
            norm=config.projection_norm,
        )

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:  # noqa: ARG002 - no bank
        """See :meth:`Method.forward`. View v of image i is row 2 i + v, so that no view is copied."""
        z = F.normalize(self.in_parts(views.flatten(0, 1), self.encoder, self.projector).float(), dim=1)
        return nt_xent(z, self.temperature)


def nt_xent(z: Tensor, temperature: float) -> StepOutput:
    """NT-Xent (Eq. 1) over 2N L2-normalised rows, of which 2i and 2i + 1 are positives: the mean of 2N losses.

    The columns are the rows of all processes, with their gradient; the mean is over the local rows.
    """
    gathered = gather_with_gradient(z)
    with autocast(z.device, "fp32"):  # 16 bits are for the networks, not for the loss
        similarity = z @ gathered.T
    rows = torch.arange(len(z), device=z.device)
    self_columns = rank() * len(z) + rows
    positive_columns = self_columns ^ 1
    columns = torch.arange(len(gathered), device=z.device)
    logits = (similarity / temperature).masked_fill(self_columns[:, None] == columns, float("-inf"))
    return StepOutput(F.cross_entropy(logits, positive_columns), similarity[rows, positive_columns].detach().mean())
