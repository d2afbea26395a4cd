"""A classifier, for the attention of Table 2's last row: z is the logits, the pseudo label the predicted class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
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
    """Cross-entropy of one view with the image's label.

    An imported classifier needs no labels: its attention boxes and features are used, and it is not trained.

    Args:
        config: the number of classes.
        encoder: the backbone.
        labels: (N,) int64 by image, in [0, num_classes); None: the classifier cannot be trained.

    Raises:
        SagaError: labels outside of the classes.
    """

    Config: ClassVar[type[MethodConfig]] = SupervisedConfig
    num_views: ClassVar[int] = 1
    contrastive: ClassVar[bool] = False
    labels: Tensor | None

    def __init__(self, config: SupervisedConfig, encoder: EncoderConfig, labels: Tensor | None = None) -> None:
        super().__init__(config, Encoder(encoder))
        self.projector = nn.Linear(self.encoder.dim, config.num_classes)
        if labels is not None and (found := int(labels.max()) + 1) > config.num_classes:
            raise SagaError(f"method.num_classes is {config.num_classes} and the images have {found} classes")
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:
        """The cross-entropy; in place of a similarity of positive pairs, the mean probability of the true class.

        Raises:
            SagaError: there are no labels.
        """
        if self.labels is None:
            raise SagaError("method supervised cannot be trained without labels: images in one folder per class")
        logits = self.in_parts(views[:, 0], self.encoder, self.projector).float()
        loss = F.cross_entropy(logits, self.labels[index], reduction="none")
        return StepOutput(loss.mean(), (-loss.detach()).exp().mean())
