"""The attention map (SAGA, Eq. 3) before upsampling: activations, their weights, and maps scaled to [0, 1].

Legend: B images, C channels, (u, v) cells of the encoder's last activations A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.attention.channel_weights import channel_weights
from saga_fast.attention.config import AttentionPass
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.methods import Method
from saga_fast.models.encoder import Encoder
from saga_fast.models.precision import autocast


class AttentionMaps(NamedTuple):
    """The input of :func:`saga_fast.kernels.attention_boxes`, and the pseudo labels.

    Attributes:
        features: (B, C, u, v), the activations.
        weights: (B, C) float32, alpha: the map is ReLU of the weighted sum over the channels.
        label: (B,) int64, the pseudo label c.
        score: (B,) float32, z^c.
    """

    features: Tensor
    weights: Tensor
    label: Tensor
    score: Tensor


def attention_maps(model: Method, images: Tensor, options: AttentionPass) -> AttentionMaps:
    """The attention maps of images (B, 3, S, S), as activations and channel weights, for a model in eval mode.

    For the score ``background`` the map is no weighted sum of channels: it is the only channel, with weight 1.

    With several branches (CMC) each branch's map, scaled to [0, 1], is a channel, and the weights are equal: the map is
    the branches' average. Each branch's map is that of its strongest dimension; the pseudo label is the strongest
    dimension of all branches, in ``model.projector``'s output.
    """
    branches = []
    for branch in model.branches(images):
        with torch.no_grad(), autocast(images.device, options.precision):
            activations = image_activations(branch.encoder, branch.images, mirror=options.mirror)
        features = mean_activations(activations)
        weights, label, score = channel_weights(branch.encoder, branch.projector, features, options.score)
        if options.score == "background":
            features = foreground_map(activations)
            weights = features.new_ones(len(features), 1)
        branches.append(AttentionMaps(features, weights, label + branch.first_dim, score))
    if len(branches) == 1:
        return branches[0]
    maps = torch.stack([scaled_map(b.features, b.weights, options.normalize) for b in branches], 1)
    score, strongest = torch.stack([b.score for b in branches], 1).max(1)
    label = torch.stack([b.label for b in branches], 1).gather(1, strongest[:, None])[:, 0]
    return AttentionMaps(maps, torch.full_like(maps[:, :, 0, 0], 1.0 / len(branches)), label, score)


def image_activations(encoder: Encoder, images: Tensor, *, mirror: bool) -> list[Tensor]:
    """The activations A (B, C, u, v) of the images and, with ``mirror``, of their mirror images, mirrored back.

    Strided convolutions with padding are not symmetric: artefacts of the grid move between an image and its mirror
    image, the object does not, so averaging both keeps the object.
    """
    activations = [encoder.features(images)]
    if mirror:
        activations.append(encoder.features(images.flip(3)).flip(3))
    return activations


def mean_activations(activations: Sequence[Tensor]) -> Tensor:
    """The mean of the activations of an image and its mirror image; a single tensor is returned as it is."""
    return activations[0] if len(activations) == 1 else torch.stack(tuple(activations)).mean(0)


def foreground_map(activations: Sequence[Tensor]) -> Tensor:
    """The map of the score ``background``: (B, C, u, v) each -> (B, 1, u, v).

    x_ij = a_ij - b is a cell's difference from the background: a are the activations scaled to length 1 at each cell,
    averaged over ``activations``, and b their mean over the cells at the image's border, the boundary prior of saliency
    detection (Wei et al., "Geodesic saliency using background priors", ECCV 2012). Then L = ReLU(x . w) with the
    direction w = sum_ij |x_ij|^4 x_ij, which the cells farthest from the background dominate.
    """
    cells = mean_activations([F.normalize(each.float(), dim=1) for each in activations])
    edges = (cells[..., 0, :], cells[..., -1, :], cells[..., 1:-1, 0], cells[..., 1:-1, -1])
    background = torch.cat(edges, dim=2).mean(2)
    difference = (cells - background[..., None, None]).flatten(2)
    direction = (difference * difference.square().sum(1, keepdim=True).square()).sum(2)
    foreground = torch.einsum("bcp,bc->bp", difference, direction).relu()
    return foreground.view(len(cells), 1, *cells.shape[2:])


def scaled_map(features: Tensor, weights: Tensor, normalize: Normalize) -> Tensor:
    """The map (Eq. 3) scaled to [0, 1]: (B, C, u, v), (B, C) -> (B, u, v) float32.

    A map that is constant or not finite cannot be scaled: it is zero, and so has no influence on an average.
    """
    coarse = torch.einsum("bcuv,bc->buv", features.float(), weights).relu()
    low = coarse.amin((1, 2), keepdim=True) if normalize == "minmax" else torch.zeros_like(coarse[:, :1, :1])
    span = coarse.amax((1, 2), keepdim=True) - low
    return torch.where(span.isfinite() & (span > 0.0), (coarse - low) / span, 0.0)
