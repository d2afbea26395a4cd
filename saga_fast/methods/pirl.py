"""PIRL (Misra and van der Maaten, "Self-supervised learning of pretext-invariant representations", CVPR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.encoder import Encoder, EncoderConfig
from saga_fast.kernels import PhotometricRecipe, jigsaw_patches
from saga_fast.methods.bank import BankConfig, BankMethod, MemoryBank
from saga_fast.methods.method import MethodConfig, StepOutput, ViewGroup


@dataclass(frozen=True, kw_only=True)
class PIRLConfig(BankConfig):
    """PIRL's own numbers (section 3.3, in PyContrast's version; REFERENCE 2), for images of 224 px."""

    name: str = "pirl"
    jigsaw_weight: float = 0.5
    """Of the jigsaw's loss; the image's has the rest."""
    jigsaw_size: int = 255
    """Side of the view that the jigsaw is cut from, pixels."""
    jigsaw_patch: int = 64
    """Side of each of its nine patches, pixels: a random square of a cell of jigsaw_size // 3."""
    jigsaw_scale: tuple[float, float] = (0.6, 1.0)
    """Range of that view's area over the image's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.jigsaw_weight <= 1.0:
            raise ValueError(f"jigsaw_weight must be in [0, 1], got {self.jigsaw_weight}")
        if not 1 <= self.jigsaw_patch <= self.jigsaw_size // 3:
            raise ValueError(
                f"jigsaw_patch must be in 1 to {self.jigsaw_size // 3}, a third of jigsaw_size, got {self.jigsaw_patch}"
            )
        if not 0.0 < self.jigsaw_scale[0] <= self.jigsaw_scale[1] <= 1.0:
            raise ValueError(f"jigsaw_scale must be an increasing pair in (0, 1], got {list(self.jigsaw_scale)}")


class PIRL(BankMethod):
    """An image's row of the bank attracts its view and its shuffled patches, and repels other rows from both.

    The rows follow the view's features, which are also what attention and evaluation look at.
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
        self._step: tuple[Tensor, Tensor] | None = None

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """The patches of an epoch are a function of (seed, epoch, index)."""
        self._seed, self._epoch = seed, epoch

    def forward(self, views: Tensor, index: Tensor, jigsaw: Tensor) -> StepOutput:  # type: ignore[override]
        """See :meth:`Method.forward`; jigsaw (B, 1, 3, jigsaw_size, jigsaw_size) float is cut and shuffled here."""
        image = F.normalize(self.projector(self.encoder(views[:, 0])).float(), dim=1)
        patches = jigsaw_patches(jigsaw[:, 0], patch=self.patch, seed=self._seed, epoch=self._epoch, indices=index)
        each = self.patch_projector(self.encoder(patches.flatten(0, 1)))
        shuffled = F.normalize(self.jigsaw_projector(each.view(len(views), -1)).float(), dim=1)
        self._step = index, image.detach()
        idx = self.draw(index)
        own, other = self.bank.contrast(image, idx), self.bank.contrast(shuffled, idx)
        return StepOutput(
            (1.0 - self.weight) * own.loss + self.weight * other.loss,
            (1.0 - self.weight) * own.positive_similarity + self.weight * other.positive_similarity,
        )

    def after_step(self) -> None:
        """The views' features move their rows."""
        assert self._step is not None, "after_step without a forward"
        self.bank.update(*self._step)
        self._step = None
