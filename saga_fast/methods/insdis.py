"""InsDis (Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.methods.bank import BankConfig, BankMethod, MemoryBank
from saga_fast.methods.method import MethodConfig, StepOutput
from saga_fast.models.encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class InsDisConfig(BankConfig):
    """See :class:`BankConfig`."""

    name: str = "insdis"


class InsDis(BankMethod):
    """An image's only view attracts the image's row of the bank and repels rows drawn from the whole bank."""

    Config: ClassVar[type[MethodConfig]] = InsDisConfig
    num_views: ClassVar[int] = 1

    def __init__(self, config: InsDisConfig, encoder: EncoderConfig, num_images: int) -> None:
        super().__init__(config, Encoder(encoder), num_images)
        self.projector = nn.Linear(self.encoder.dim, config.projection_dim)
        self.bank = MemoryBank(num_images, config)

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:
        """See :meth:`Method.forward`."""
        feature = F.normalize(self.in_parts(views[:, 0], self.encoder, self.projector).float(), dim=1)
        self.record(index, (self.bank, feature))
        return self.bank.contrast(feature, self.draw(index))
