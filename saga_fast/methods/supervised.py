"""A classifier, for the attention of Table 2's last row: z is the logits, the pseudo label the predicted class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.methods.heads import check_count
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.models.encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(MethodConfig):
    """The number of classes; default: ImageNet's."""

    name: str = "supervised"
    num_classes: int = 1000

    def __post_init__(self) -> None:
        check_count("num_classes", self.num_classes, least=2)


class Supervised(Method):
    """An imported classifier, used for its attention boxes and features; it is not trained here."""

    Config: ClassVar[type[MethodConfig]] = SupervisedConfig
    trainable: ClassVar[bool] = False

    def __init__(self, config: SupervisedConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, Encoder(encoder))
        self.projector = nn.Linear(self.encoder.dim, config.num_classes)

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:  # noqa: ARG002 - nothing is trained
        """Raise :class:`SagaError`: there is no contrastive loss."""
        raise SagaError(f"method {self.method} cannot be trained: it is a classifier whose attention gives boxes")
