"""Inv. Spread (Ye et al., "Unsupervised embedding learning via invariant and spreading instance feature", 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.methods.heads import check_temperature, check_widths
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.models.encoder import Encoder, EncoderConfig
from saga_fast.models.precision import autocast
from saga_fast.runtime.distributed import gather, rank


@dataclass(frozen=True, kw_only=True)
class InvSpreadConfig(MethodConfig):
    """Inv. Spread's hyperparameters (section 4)."""

    name: str = "invspread"
    temperature: float = 0.1
    projection_dim: int = 128

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_widths(self.projection_dim, None)


class InvSpread(Method):
    """A view is recognised as its image's other view (invariant), and no other view is recognised as it (spreading).

    Both views are augmented, as in the official code; the paper's equations have one plain view.
    """

    Config: ClassVar[type[MethodConfig]] = InvSpreadConfig
    sync_batchnorm: ClassVar[bool] = True  # the authors train on one GPU

    def __init__(self, config: InvSpreadConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, Encoder(encoder))
        self.temperature = config.temperature
        self.projector = nn.Linear(self.encoder.dim, config.projection_dim)

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:  # noqa: ARG002 - no bank
        """See :meth:`Method.forward`. View v of image i is row 2 i + v, so that no view is copied."""
        z = F.normalize(self.in_parts(views.flatten(0, 1), self.encoder, self.projector).float(), dim=1)
        return invariant_spread(z, self.temperature)


def invariant_spread(z: Tensor, temperature: float) -> StepOutput:
    """-1 / 2N sum_i [log P(i's other view | i) + sum_j log(1 - P(j | i))], j the other images' views (section 3.2).

    P(j | i) is the softmax over all rows but i of z_i . z_j / temperature, for 2N L2-normalised rows of which 2i and
    2i + 1 are views of one image. The gradient flows through z_i alone, z_j is detached (the official code).
    j runs over the rows of all processes, i over the local rows.
    """
    gathered = gather(z)
    with autocast(z.device, "fp32"):  # 16 bits are for the networks, not for the loss
        similarity = z @ gathered.T
    rows = torch.arange(len(z), device=z.device)
    self_columns = rank() * len(z) + rows
    positive_columns = self_columns ^ 1
    columns = torch.arange(len(gathered), device=z.device)
    log_p = (similarity / temperature).masked_fill(self_columns[:, None] == columns, float("-inf")).log_softmax(dim=1)
    negatives = log_p.exp().masked_fill(positive_columns[:, None] == columns, 0.0)
    loss = -(log_p[rows, positive_columns] + torch.log1p(-negatives).sum(1)).mean()
    return StepOutput(loss, similarity[rows, positive_columns].detach().mean())
