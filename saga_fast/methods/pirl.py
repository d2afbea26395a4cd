"""PIRL (Misra and van der Maaten, "Self-supervised learning of pretext-invariant representations", CVPR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.kernels import PhotometricRecipe, jigsaw_patches
from saga_fast.loaders.config import MAX_SIDE
from saga_fast.methods.bank import BankConfig, BankMethod, MemoryBank
from saga_fast.methods.method import MethodConfig, StepOutput, ViewGroup
from saga_fast.models.encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class PIRLConfig(BankConfig):
    """PIRL's hyperparameters (section 3.3, in PyContrast's version), for images of 224 px."""

    name: str = "pirl"
    jigsaw_weight: float = 0.5
    """Weight of the jigsaw's loss; the image's loss has 1 - jigsaw_weight."""
    jigsaw_size: int = 255
    """Side of the view that the patches are cut from, pixels."""
    jigsaw_patch: int = 64
    """Side of each of the nine patches, pixels: a random square in a cell of side jigsaw_size // 3."""
    jigsaw_scale: tuple[float, float] = (0.6, 1.0)
    """Range of the area of that view, as a fraction of the image's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.jigsaw_weight <= 1.0:
            raise ValueError(f"jigsaw_weight must be in [0, 1], got {self.jigsaw_weight}")
        if not 3 <= self.jigsaw_size <= MAX_SIDE:
            raise ValueError(f"jigsaw_size must be in 3 to {MAX_SIDE}, got {self.jigsaw_size}")
        if not 1 <= self.jigsaw_patch <= self.jigsaw_size // 3:
            raise ValueError(
                f"jigsaw_patch must be in 1 to {self.jigsaw_size // 3}, a third of jigsaw_size, got {self.jigsaw_patch}"
            )
        if not 0.0 < self.jigsaw_scale[0] <= self.jigsaw_scale[1] <= 1.0:
            raise ValueError(f"jigsaw_scale must be an increasing pair in (0, 1], got {list(self.jigsaw_scale)}")


class PIRL(BankMethod):
    """An image's view and its shuffled patches attract the image's row of the bank and repel drawn rows.

    The rows follow the view's features, which attention and evaluation use too.
    """

    Config: ClassVar[type[MethodConfig]] = PIRLConfig
    num_views: ClassVar[int] = 1

    def __init__(self, config: PIRLConfig, encoder: EncoderConfig, num_images: int) -> None:
        super().__init__(config, Encoder(encoder), num_images)
        self.weight, self.patch = config.jigsaw_weight, config.jigsaw_patch
        self.more_views = (
            ViewGroup(size=config.jigsaw_size, scale=config.jigsaw_scale, photometric=PhotometricRecipe(flip=0.5)),
        )
        self.projector = nn.Linear(self.encoder.dim, config.projection_dim)
        self.patch_projector = nn.Linear(self.encoder.dim, config.projection_dim)
        self.jigsaw_projector = nn.Linear(9 * config.projection_dim, config.projection_dim)
        self.bank = MemoryBank(num_images, config)
        self._seed, self._epoch = 0, 0

    @property
    def more_sizes(self) -> tuple[int, ...]:
        """See :attr:`Method.more_sizes`: the patches'."""
        return (self.patch,)

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Set the key of the patches, which are a function of (seed, epoch, index)."""
        self._seed, self._epoch = seed, epoch

    def forward(self, views: Tensor, index: Tensor, jigsaw: Tensor) -> StepOutput:  # type: ignore[override]
        """See :meth:`Method.forward`; jigsaw (B, 1, 3, jigsaw_size, jigsaw_size) float is cut and shuffled here."""
        image = F.normalize(self.in_parts(views[:, 0], self.encoder, self.projector).float(), dim=1)
        patches = jigsaw_patches(jigsaw[:, 0], patch=self.patch, seed=self._seed, epoch=self._epoch, indices=index)
        each = self.in_parts(patches.flatten(0, 1), self.encoder, self.patch_projector)
        shuffled = F.normalize(self.jigsaw_projector(each.view(len(views), -1)).float(), dim=1)
        self.record(index, (self.bank, image))
        idx = self.draw(index)
        of_image, of_jigsaw = self.bank.contrast(image, idx), self.bank.contrast(shuffled, idx)
        return StepOutput(
            (1.0 - self.weight) * of_image.loss + self.weight * of_jigsaw.loss,
            (1.0 - self.weight) * of_image.positive_similarity + self.weight * of_jigsaw.positive_similarity,
        )
