"""The config's ``attention``: how D^att is made and used, and the options of one attention pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saga_fast.attention.channel_weights import Score
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders.plan import Crop, Views
from saga_fast.models.compiled_features import Forward
from saga_fast.models.precision import Precision

Renew = Literal["all", "changed"]
Region = Literal["all", "largest"]


@dataclass(frozen=True, kw_only=True)
class AttentionPass:
    """The options of one attention pass: all that its boxes depend on besides the model and the images.

    Raises:
        ValueError: ``delta`` or ``size`` out of range.
    """

    delta: float = 0.7
    """Threshold on the scaled heatmap, in [0, 1)."""
    size: int = 224
    """Side of the whole images that the network gets, and of the upsampled heatmap, pixels."""
    normalize: Normalize = "minmax"
    """Scaling of each coarse map to [0, 1], see :func:`saga_fast.kernels.attention_boxes`."""
    score: Score = "pseudo_label"
    """The score that is differentiated, see :class:`AttentionConfig`."""
    region: Region = "all"
    """The cells that the box is put around, see :class:`AttentionConfig`."""
    mirror: bool = False
    """Average the activations with those of the mirror image: a second forward pass."""
    precision: Precision = "fp32"
    """Autocast type of the forward pass."""
    channels_last: bool = False
    """Memory format of the input."""
    forward: Forward = "auto"
    """Eager or compiled, see :func:`saga_fast.models.compiled_features.choose_forward`."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.delta < 1.0:
            raise ValueError(f"delta must be in [0, 1), got {self.delta}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How D^att is made and used. The first value of each choice is the paper's reading."""

    provider: Literal["self", "supervised", "table"] = "self"
    """Source of the boxes: ``self``, the trained network's attention; ``supervised``, the attention of a classifier,
    whose z are its logits (Table 2's last row); ``table``, an existing box table."""
    provider_ckpt: str | None = None
    """``supervised``: the classifier, a checkpoint written by ``saga-fast import``."""
    provider_table: str | None = None
    """``table``: a box table of the training images, for example from ``saga-fast build-att``. It is never renewed."""
    period: int = 10
    """Epochs between renewals; the paper uses 40 and, better, 10."""
    renew: Renew = "all"
    """Images that a renewal computes: ``all``, or those whose boxes ``changed`` between the last two renewals and a
    quarter of the remaining ones in turn (docs/renewal.md)."""
    views: Views = "att"
    """Views that are attention crops: all (``att``), all but the first (``mixed``), or all or none (``union``).
    ``paste``: all but the first, which is an attention crop pasted onto another image, or as with ``mixed``. DINO with
    local views: ``mixed`` leaves both global views whole, ``paste`` the second one."""
    share: float = 0.5
    """Probability, per image and epoch: ``union``, that the views are attention crops; ``paste``, that the first is
    pasted."""
    crop: Crop = "inside"
    """``inside``: crops of the box; ``centred``: crops of the whole image with their centres in the box, as in
    ContrastiveCrop."""
    score: Score = "pseudo_label"
    """The differentiated score: ``pseudo_label``, z^c. Three scores differentiate nothing: ``activation``, the sum over
    the channels; ``background``, the difference of each cell from those cells at the image's border that it resembles
    most, which wants a ``delta`` of 0.5 to 0.6 with region largest, 0.7 with all (docs/study.md); and ``token``, the
    attention of a vision transformer's class token to the patches (DINO's maps), for encoders that pool this token."""
    region: Region = "all"
    """The cells above ``delta`` that the box is put around: ``all`` of them, or the connected region with the
    ``largest`` sum, scaled by its own maximum, so that two objects have no common box."""
    mirror: bool = False
    """Average the activations with those of the mirror image: a second forward pass."""
    input_size: int | None = None
    """Side of the whole images in the attention pass, pixels; null: ``crop.size``. The cost grows with its square."""
    delta: float = 0.7
    """Threshold on the scaled heatmap, in [0, 1)."""
    normalize: Normalize = "minmax"
    """Scaling of each coarse map to [0, 1]: ``minmax``, or ``max``, by its maximum."""
    precision: Precision | None = None
    """Number format of the attention pass; null: that of training."""
    forward: Forward = "auto"
    """Forward pass of the attention pass: ``eager``; ``compiled`` by TorchInductor with constant weights; ``auto``:
    compiled on a CPU if the pass is long enough to pay for compiling."""
    min_side: float = 0.0
    """Minimum side of a crop's box, as a fraction of the image's side: smaller boxes are widened."""

    def __post_init__(self) -> None:
        for provider, key in (("supervised", "provider_ckpt"), ("table", "provider_table")):
            value = getattr(self, key)
            if (self.provider == provider) != (value is not None):
                raise ValueError(f"provider {provider}, and it alone, needs a {key}, got {self.provider}, {value}")
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")
        if self.renew != "all" and self.provider != "self":
            raise ValueError(f"renew {self.renew} needs provider self, whose boxes change, got {self.provider}")
        if not 0.0 <= self.delta < 1.0:
            raise ValueError(f"delta must be in [0, 1), got {self.delta}")
        for name in ("share", "min_side"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {self.input_size}")

    def attention_pass(self, *, size: int, precision: Precision, channels_last: bool) -> AttentionPass:
        """The options of a renewal's attention pass.

        Args:
            size: ``crop.size``, for a config without ``input_size``.
            precision: the training precision, for a config without one of its own.
            channels_last: as in training.
        """
        return AttentionPass(
            delta=self.delta,
            size=self.input_size or size,
            normalize=self.normalize,
            score=self.score,
            region=self.region,
            mirror=self.mirror,
            precision=self.precision or precision,
            channels_last=channels_last,
            forward=self.forward,
        )
