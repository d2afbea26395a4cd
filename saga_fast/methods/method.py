"""What every method is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from saga_fast.encoder import Encoder
from saga_fast.kernels import PhotometricRecipe


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which method; every method adds its own fields."""

    name: str


@dataclass(frozen=True)
class StepOutput:
    """What a training step needs from a method: both are scalars, the loss with its graph."""

    loss: Tensor
    positive_similarity: Tensor


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """Views that a method takes besides its main ones, because their size or augmentation is another.

    They are numbered on from the main views, so that their windows and photometrics are draws of their own.
    """

    size: int
    """Side, pixels."""
    count: int = 1
    """Views per image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of a crop's area, as of the main views."""
    photometric: PhotometricRecipe = field(default_factory=PhotometricRecipe)


class Branch(NamedTuple):
    """A part of the network that gives z of its own, and what it sees of the images."""

    encoder: Encoder
    projector: nn.Module
    images: Tensor
    """(B, channels, S, S): the encoder's input."""
    first_dim: int = 0
    """Place of this z in the model's, which has the branches' side by side."""


class Method(nn.Module):
    """A contrastive method: an encoder f, a projector g with z = g(f(x)) before any L2 normalisation, and a loss.

    Subclasses take ``(config, encoder: EncoderConfig)``, and those of :class:`~saga_fast.methods.bank.BankMethod` the
    number of images too. They implement :meth:`forward`, and :meth:`after_step` if they keep a queue or a bank.
    Everything that a resumed run needs is in ``state_dict()``.

    Under torchrun every process has a part of the batch, and the same random state. What a loss compares with is
    gathered from all of them (:func:`saga_fast.distributed.gather_with_gradient`), the loss is the mean over the
    process's own images, random numbers are drawn for the whole batch and cut (``own_rows``), and queues and banks
    change by the whole batch's features, so that they stay the same everywhere.

    Attributes:
        encoder: f.
        projector: g.
        num_views: main views per image that :meth:`forward` takes.
        more_views: further groups of views that :meth:`forward` takes, in this order, after its first two arguments.
        trainable: whether :meth:`forward` gives a loss; a classifier that only gives attention has none.
        method: the method's name, its key in ``METHODS``.
        sync_batchnorm: whether the paper's batch norm goes over the whole batch; the config may say otherwise.
    """

    Config: ClassVar[type[MethodConfig]]
    num_views: ClassVar[int] = 2
    trainable: ClassVar[bool] = True
    sync_batchnorm: ClassVar[bool] = False
    more_views: tuple[ViewGroup, ...] = ()
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

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Called before every epoch of training: the key of a method's counter-based draws."""

    def after_step(self) -> None:
        """Called after every optimiser step: queues and banks take the step's features."""

    def branches(self, images: Tensor) -> tuple[Branch, ...]:
        """The encoders and projectors whose z the loss compares: one, unless a method says otherwise (CMC: two).

        Args:
            images: (B, 3, S, S) float, normalised with the encoder's ``mean`` and ``std``.
        """
        return (Branch(self.encoder, self.projector, images),)
