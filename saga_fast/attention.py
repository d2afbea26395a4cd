"""The attention pass: one forward pass over the data set, one box per image (SAGA, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saga_fast.channel_weights import Score, channel_weights
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import Batch, BoxTable, Loader
from saga_fast.loaders.plan import Views
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast, normalized

Normalize = Literal["minmax", "max"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How D^att is made and used (DESIGN 1). The first value of each choice is the paper's reading."""

    provider: Literal["self", "supervised"] = "self"
    """Whose attention: the network's own, or that of a classifier, whose z are its logits (Table 2's last row)."""
    provider_ckpt: str | None = None
    """``supervised``: the classifier, a checkpoint that ``saga-fast import`` wrote."""
    period: int = 10
    """Epochs between renewals; the paper's 40 and, better, 10."""
    views: Views = "att"
    """Which views are attention crops: all (``att``), all but the first (``mixed``), all or none (``union``)."""
    share: float = 0.5
    """``union``: probability that an image enters as its crop in an epoch."""
    score: Score = "pseudo_label"
    """What is differentiated: z^c; half of |z|^2; or nothing, the plain channel sum."""
    delta: float = 0.7
    """Threshold on the scaled heatmap."""
    normalize: Normalize = "minmax"
    """Scaling of each coarse map to [0, 1]."""
    margin: float = 0.0
    """Fraction of the box's side added on each side before cropping."""
    min_side: float = 0.0
    """Boxes are widened to at least this fraction of the image's side before cropping."""

    def __post_init__(self) -> None:
        if (self.provider == "supervised") != (self.provider_ckpt is not None):
            raise ValueError(
                f"provider supervised, and it alone, needs a provider_ckpt, got {self.provider}, {self.provider_ckpt}"
            )
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")
        for name, value, below in (
            ("delta", self.delta, 1.0),
            ("share", self.share, 1.01),
            ("min_side", self.min_side, 1.01),
        ):
            if not 0.0 <= value < below:
                raise ValueError(f"{name} must be in [0, 1{']' if below > 1 else ')'}, got {value}")
        if self.margin < 0.0:
            raise ValueError(f"margin must not be negative, got {self.margin}")


def build_box_table(
    model: Method,
    loader: Loader,
    *,
    delta: float = 0.7,
    size: int | None = None,
    normalize: Normalize = "minmax",
    score: Score = "pseudo_label",
    precision: Precision = "fp32",
    channels_last: bool = False,
    metadata: Mapping[str, str] | None = None,
    progress: bool = False,
) -> BoxTable:
    """One box per image of the loader's data set, from the model's own attention (Eq. 2 to 4).

    A forward pass in eval mode; the model's mode is restored. Images that cannot be decoded keep the whole image.

    Args:
        model: has ``encoder`` and ``projector``; runs on the device where its parameters are.
        loader: whole images, in any order (:class:`saga_fast.loaders.WholePlan`).
        delta: threshold on the scaled heatmap.
        size: side of the heatmap, pixels; default: the loader's image size.
        normalize: scaling of the coarse map, see :func:`saga_fast.kernels.attention_boxes`.
        score: what is differentiated, see :class:`AttentionConfig`.
        precision: autocast type of the forward pass.
        channels_last: memory format of the input.
        metadata: strings for the table, ``checkpoint`` and ``epoch`` say.
        progress: show a progress bar with images/s on stderr.

    Raises:
        SagaError: more undecodable images than the loader's list allows.
    """
    table = BoxTable.whole(len(loader.source))
    size = loader.plan.size if size is None else size
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(table), desc="attention", unit="img", disable=None if progress else True) as bar:
            for batch in loader:
                rows = batch.index.numpy()
                found_in_batch = boxes_of_batch(
                    model,
                    batch,
                    delta=delta,
                    size=size,
                    normalize=normalize,
                    score=score,
                    precision=precision,
                    channels_last=channels_last,
                )
                table.boxes[rows], table.found[rows], table.pseudo_label[rows], table.score[rows] = (
                    column.cpu().numpy() for column in found_in_batch
                )
                bar.update(len(rows))
    finally:
        model.train(was_training)
    described = {
        "dataset": loader.source.fingerprint,
        "delta": repr(delta),
        "size": str(size),
        "normalize": normalize,
        "attention_score": score,
    }
    return BoxTable(table.boxes, table.found, table.pseudo_label, table.score, {**described, **(metadata or {})})


def boxes_of_batch(
    model: Method,
    batch: Batch,
    *,
    delta: float,
    size: int,
    normalize: Normalize,
    score: Score,
    precision: Precision,
    channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attention pass of one batch of whole images, for a model in eval mode; arguments as above.

    Returns:
        boxes (B, 4) float32, found (B,) bool, pseudo label (B,) int64 and score (B,) float32, on the model's device.
    """
    device = next(model.parameters()).device
    images = normalized(batch.views, model.encoder, device, channels_last=channels_last)[:, 0]
    features, weights, label, value = _look(model, images, precision, score, normalize)
    boxes, found = attention_boxes(features, weights, delta=delta, size=size, normalize=normalize)
    return boxes, found, label, value


def _look(
    model: Method, images: Tensor, precision: Precision, score: Score, normalize: Normalize
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the boxes are made of: activations (B, C, u, v) and weights (B, C), pseudo label and score (B,).

    Of several branches (CMC) each one's map, scaled to [0, 1], becomes a channel, and all weigh the same: the weighted
    sum is their average, which ``attention_boxes`` scales like any other map. The pseudo label is then the strongest
    dimension of all branches' z side by side, ``model.projector``'s output, while each map is its own branch's
    strongest dimension's.
    """
    looks = []
    for branch in model.branches(images):
        with torch.no_grad(), autocast(images.device, precision):
            features = branch.encoder.features(branch.images)
        weights, label, value = channel_weights(branch.encoder, branch.projector, features, score)
        looks.append((features, weights, label + branch.first_dim, value))
    if len(looks) == 1:
        return looks[0]
    maps = torch.stack([scaled_map(features, weights, normalize) for features, weights, _, _ in looks], 1)
    value, strongest = torch.stack([look[3] for look in looks], 1).max(1)
    label = torch.stack([look[2] for look in looks], 1).gather(1, strongest[:, None])[:, 0]
    return maps, torch.full_like(maps[:, :, 0, 0], 1.0 / len(looks)), label, value


def scaled_map(features: Tensor, weights: Tensor, normalize: Normalize) -> Tensor:
    """The coarse heatmap (Eq. 3) scaled to [0, 1]: (B, C, u, v), (B, C) -> (B, u, v) float32.

    A map that could not be scaled, because it is constant or not finite, is zero and has no vote in an average.
    """
    coarse = torch.einsum("bcuv,bc->buv", features.float(), weights).relu()
    low = coarse.amin((1, 2), keepdim=True) if normalize == "minmax" else torch.zeros_like(coarse[:, :1, :1])
    span = coarse.amax((1, 2), keepdim=True) - low
    return torch.where(span.isfinite() & (span > 0.0), (coarse - low) / span, 0.0)


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [x_min, y_min, w, h], row by row: (N, 4), (N, 4) -> (N,)."""
    near = np.maximum(boxes[:, :2], others[:, :2])
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    shared = np.prod(np.maximum(far - near, 0.0), axis=1)
    iou: np.ndarray = shared / (np.prod(boxes[:, 2:], axis=1) + np.prod(others[:, 2:], axis=1) - shared)
    return iou
