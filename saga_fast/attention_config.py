"""How D^att is made and used: the config's ``attention``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saga_fast.channel_weights import Score
from saga_fast.compiled_encoder import Forward
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders.plan import Crop, Views
from saga_fast.precision import Precision

Renew = Literal["all", "changed", "fraction", "streaming"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How D^att is made and used (DESIGN 1). The first value of each choice is the paper's reading."""

    provider: Literal["self", "supervised", "table"] = "self"
    """Whose attention: the network's own; that of a classifier, whose z are its logits (Table 2's last row); or the
    boxes of a table that is there already."""
    provider_ckpt: str | None = None
    """``supervised``: the classifier, a checkpoint that ``saga-fast import`` wrote."""
    provider_table: str | None = None
    """``table``: a box table of the training images, by ``saga-fast build-att`` say. It is never renewed."""
    period: int = 10
    """Epochs between renewals; the paper's 40 and, better, 10."""
    renew: Renew = "all"
    """What a renewal computes: ``all`` boxes; those that ``changed`` over the last two renewals, and a quarter of the
    others in turn; a fixed ``fraction`` of all in turn; or, ``streaming``, none: boxes come from maps
    that training's own views leave behind (docs/renewal.md)."""
    fraction: float = 0.25
    """``fraction``: of the images, computed at each renewal after the first."""
    decay: float = 0.5
    """``streaming``: what an image's accumulated map keeps each time that the image is seen again."""
    views: Views = "att"
    """Which views are attention crops: all (``att``), all but the first (``mixed``), all or none (``union``)."""
    share: float = 0.5
    """``union``: probability that an image enters as its crop in an epoch."""
    crop: Crop = "inside"
    """``inside``: crops of the box; ``centred``: crops of whole images whose centres lie in the box, ContrastiveCrop's
    rule."""
    score: Score = "pseudo_label"
    """What is differentiated: z^c; half of |z|^2; or nothing: ``activation`` is the plain channel sum, ``background``
    how each cell differs from those at the image's border, which wants a ``delta`` of 0.5 to 0.6 (docs/study.md)."""
    mirror: bool = False
    """Average the activations with those of the mirror image: a second forward pass."""
    input_size: int | None = None
    """Side of the whole images in the attention pass, pixels; null: ``crop.size``. The cost grows with its square."""
    delta: float = 0.7
    """Threshold on the scaled heatmap."""
    normalize: Normalize = "minmax"
    """Scaling of each coarse map to [0, 1]."""
    precision: Precision | None = None
    """Of the attention pass; null: that of training."""
    forward: Forward = "auto"
    """Of the attention pass: ``eager``; ``compiled`` by TorchInductor, its weights constants; ``auto``: compiled on a
    CPU where the pass is long enough to pay for it."""
    margin: float = 0.0
    """Fraction of the box's side added on each side before cropping."""
    min_side: float = 0.0
    """Boxes are widened to at least this fraction of the image's side before cropping."""

    def __post_init__(self) -> None:
        for provider, key in (("supervised", "provider_ckpt"), ("table", "provider_table")):
            value = getattr(self, key)
            if (self.provider == provider) != (value is not None):
                raise ValueError(f"provider {provider}, and it alone, needs a {key}, got {self.provider}, {value}")
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")
        if self.renew != "all" and self.provider != "self":
            raise ValueError(f"renew {self.renew} needs provider self, whose boxes change, got {self.provider}")
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        for name, number, below in (
            ("delta", self.delta, 1.0),
            ("decay", self.decay, 1.0),
            ("share", self.share, 1.01),
            ("min_side", self.min_side, 1.01),
        ):
            if not 0.0 <= number < below:
                raise ValueError(f"{name} must be in [0, 1{']' if below > 1 else ')'}, got {number}")
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {self.input_size}")
        if self.margin < 0.0:
            raise ValueError(f"margin must not be negative, got {self.margin}")
