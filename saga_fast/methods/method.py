"""The base class of all methods, and what a training step returns."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saga_fast.kernels import PhotometricRecipe
from saga_fast.models.encoder import Encoder
from saga_fast.models.modes import keeping_statistics


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The method's name; each method adds its fields."""

    name: str


@dataclass(frozen=True)
class StepOutput:
    """The result of a method's forward pass: two scalars, the loss with its graph."""

    loss: Tensor
    positive_similarity: Tensor


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """Further views of a method, whose size or augmentation differs from the main views' (PIRL's jigsaw).

    They are numbered after the main views, so that their windows and photometrics are drawn independently.
    """

    size: int
    """Side, pixels."""
    count: int = 1
    """Views per image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of a crop's area, as a fraction of the box's."""
    photometric: PhotometricRecipe = field(default_factory=PhotometricRecipe)


class Branch(NamedTuple):
    """One encoder and projector of a method, and the encoder's input."""

    encoder: Encoder
    projector: nn.Module
    images: Tensor
    """(B, channels, S, S): the encoder's input."""
    first_dim: int = 0
    """Index of this branch's first dimension in the model's z, which concatenates all branches."""


class Method(nn.Module):
    """A contrastive method: an encoder f, a projector g with z = g(f(x)) before any L2 normalisation, and a loss.

    Subclasses take ``(config, encoder: EncoderConfig)``, and subclasses of :class:`~saga_fast.methods.bank.BankMethod`
    also the number of images. They implement :meth:`forward`, whose networks are applied by :meth:`in_parts`, and
    :meth:`after_step` if they keep a queue or a bank. ``state_dict()`` holds everything that a resumed run needs.

    Under torchrun each process has a part of the batch and the same random state. Negatives are gathered from all
    processes (:func:`saga_fast.runtime.distributed.gather_with_gradient`), the loss is the mean over the local images,
    random numbers are drawn for the whole batch and cut (``local_rows``), and queues and banks are updated with the
    whole batch's features, so that they stay equal on all ranks.

    Attributes:
        encoder: f.
        projector: g.
        num_views: main views per image that :meth:`forward` takes.
        more_views: groups of further views, passed to :meth:`forward` in this order after its first two arguments.
        contrastive: whether the loss needs no labels; False for a classifier.
        parts: number of parts of a batch that :meth:`in_parts` computes one after the other.
        method: the method's name, its key in ``METHODS``.
        sync_batchnorm: whether batch norm covers the whole batch by default, as in the method's paper.
    """

    Config: ClassVar[type[MethodConfig]]
    num_views: ClassVar[int] = 2
    contrastive: ClassVar[bool] = True
    sync_batchnorm: ClassVar[bool] = False
    more_views: tuple[ViewGroup, ...] = ()
    parts: int = 1
    projector: nn.Module

    def __init__(self, config: MethodConfig, encoder: Encoder) -> None:
        super().__init__()
        self.method = config.name
        self.encoder = encoder

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:
        """The loss of a batch.

        Args:
            views: (B, V, 3, S, S) float, augmented and normalised.
            index: (B,) int64, the images' positions in the data set.

        A method with ``more_views`` takes each group as one more argument (B, count, 3, size, size).
        """
        raise NotImplementedError

    def in_parts(self, images: Tensor, *networks: nn.Module) -> Tensor:
        """The networks applied one after the other to images, ``parts`` equal parts of them with the memory of one.

        This is GradCache (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup",
        RepL4NLP 2021, section 3.2): the first pass keeps no activations, the loss is that of the whole batch, and its
        gradient in the result enters each part's networks in a second pass. torch's checkpoints do that, with the
        random draws of the first pass. The last part's activations are kept: N parts cost N - 1 forward passes of a
        part, one costs none. Batch norm covers a part, and moves its running statistics in the first pass.

        Args:
            images: (B, ...), B divisible by ``parts``.
            networks: none of them compares images, except for batch norm.
        """

        def network(x: Tensor) -> Tensor:
            for each in networks:
                x = each(x)
            return x

        if self.parts == 1:
            return network(images)
        assert len(images) % self.parts == 0
        *repeated, last = images.chunk(self.parts)
        features = [
            checkpoint(
                network, part, use_reentrant=False, context_fn=lambda: (nullcontext(), keeping_statistics(*networks))
            )
            for part in repeated
        ]
        return torch.cat([*features, network(last)])

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Set the key of the method's counter-based draws; called before each training epoch."""

    def after_step(self) -> None:
        """Update queues and banks with the step's features; called after each optimiser step."""

    def branches(self, images: Tensor) -> tuple[Branch, ...]:
        """The encoders and projectors whose z the loss compares, with their inputs: one, for CMC two.

        Args:
            images: (B, 3, S, S) float, normalised with the encoder's ``mean`` and ``std``.
        """
        return (Branch(self.encoder, self.projector, images),)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders of :meth:`branches`, in their order."""
        return (self.encoder,)

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """The projectors of :meth:`branches`, in their order; :meth:`forward` calls them with the main views' features.

        The online probe learns from these calls, which have the views of an image in successive rows.
        """
        return (self.projector,)

    @property
    def more_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the encoder's inputs that are made of ``more_views``."""
        return tuple(group.size for group in self.more_views)
