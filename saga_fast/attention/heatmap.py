"""The attention map (SAGA, Eq. 3) before upsampling: activations, their weights, and maps scaled to [0, 1].

Legend: B images, C channels, (u, v) cells of the encoder's activations A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.attention.channel_weights import channel_weights
from saga_fast.attention.config import AttentionPass
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.methods import Method
from saga_fast.models.encoder import Activations, Encoder
from saga_fast.models.precision import Precision, autocast


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

    For the scores ``background`` and ``token``, and for ``region`` largest, the map is no weighted sum of channels: it
    is the only channel, with weight 1.

    With several branches (CMC) each branch's map, scaled to [0, 1], is a channel, and the weights are equal: the map is
    the branches' average. Each branch's map is that of its strongest dimension; the pseudo label is the strongest
    dimension of all branches, in ``model.projector``'s output.

    Raises:
        SagaError: the score ``token`` of an encoder without a class token.
    """
    branches = []
    for branch in model.branches(images):
        with torch.no_grad(), autocast(images.device, options.precision):
            activations = image_activations(branch.encoder, branch.images, mirror=options.mirror)
        features, prefix = _mean(activations)
        weights, label, score = channel_weights(
            branch.encoder, branch.projector, features, options.score, prefix=prefix, precision=options.precision
        )
        if options.score == "background":
            features = foreground_map([each.features for each in activations])
        elif options.score == "token":
            features = _class_attention(branch.encoder, activations, options.precision)
        if options.score in ("background", "token"):
            weights = features.new_ones(len(features), 1)
        branches.append(AttentionMaps(features, weights, label + branch.first_dim, score))
    if len(branches) == 1 and options.region == "all":
        return branches[0]
    maps = torch.stack([scaled_map(b.features, b.weights, options.normalize) for b in branches], 1)
    score, strongest = torch.stack([b.score for b in branches], 1).max(1)
    label = torch.stack([b.label for b in branches], 1).gather(1, strongest[:, None])[:, 0]
    if options.region == "largest":
        mean = maps.mean(1, keepdim=True)
        mean = scaled_map(mean, torch.ones_like(mean[:, :, 0, 0]), options.normalize)
        maps = largest_region(mean, options.delta)[:, None]
    return AttentionMaps(maps, torch.full_like(maps[:, :, 0, 0], 1.0 / maps.shape[1]), label, score)


def image_activations(encoder: Encoder, images: Tensor, *, mirror: bool) -> list[Activations]:
    """The activations of the images and, with ``mirror``, of their mirror images, mirrored back.

    Strided convolutions with padding are not symmetric: artefacts of the grid move between an image and its mirror
    image, the object does not, so averaging both keeps the object.
    """
    activations = [encoder.activations(images)]
    if mirror:
        features, prefix = encoder.activations(images.flip(3))
        activations.append(Activations(features.flip(3), prefix))
    return activations


def _mean(activations: Sequence[Activations]) -> Activations:
    prefixes = [each.prefix for each in activations if each.prefix is not None]
    return Activations(
        mean_activations([each.features for each in activations]), mean_activations(prefixes) if prefixes else None
    )


def mean_activations(activations: Sequence[Tensor]) -> Tensor:
    """The mean of the activations of an image and its mirror image; a single tensor is returned as it is."""
    return activations[0] if len(activations) == 1 else torch.stack(tuple(activations)).mean(0)


@torch.no_grad()
def _class_attention(encoder: Encoder, activations: Sequence[Activations], precision: Precision) -> Tensor:
    """The map of the score ``token`` (B, 1, u, v): the mean over the image and its mirror image."""
    with autocast(activations[0].features.device, precision):
        return mean_activations([encoder.class_attention(each) for each in activations])


def foreground_map(activations: Sequence[Tensor]) -> Tensor:
    """The map of the score ``background``: (B, C, u, v) each -> (B, 1, u, v).

    x_ij = a_ij - b_ij is a cell's difference from the background: a are the activations scaled to length 1 at each
    cell, averaged over ``activations``, and b_ij the mean of those cells at the image's border that are nearest to
    a_ij, half of them without the very nearest, which for a cell at the border is itself. That the border shows
    background is the boundary prior of saliency detection (Wei et al., "Geodesic saliency using background priors",
    ECCV 2012); the nearest half allows for a background of several parts, and for an object that touches the border.
    Then L = ReLU(x . w) with w = sum_ij |x_ij|^4 x_ij, which the cells farthest from the background dominate.
    """
    cells = mean_activations([F.normalize(each.float(), dim=1) for each in activations])
    edges = (cells[..., 0, :], cells[..., -1, :], cells[..., 1:-1, 0], cells[..., 1:-1, -1])
    line = min(cells.shape[2:]) == 1  # whose first and last row are one
    border, cells = cells.flatten(2) if line else torch.cat(edges, dim=2), cells.flatten(2)
    # Squared distances, without the part that a cell's distances have in common.
    distance = border.square().sum(1)[:, None] - 2.0 * torch.einsum("bcp,bce->bpe", cells, border)
    half = math.ceil(border.shape[2] / 2)
    nearest = distance.topk(min(1 + half, border.shape[2]), largest=False).indices[..., 1:]
    share = torch.zeros_like(distance).scatter_(2, nearest, 1.0 / max(1, nearest.shape[2]))
    difference = cells - torch.einsum("bpe,bce->bcp", share, border)
    direction = (difference * difference.square().sum(1, keepdim=True).square()).sum(2)
    foreground = torch.einsum("bcp,bc->bp", difference, direction).relu()
    return foreground.view(len(cells), 1, *activations[0].shape[2:])


def largest_region(maps: Tensor, delta: float) -> Tensor:
    """Keep, of maps (B, u, v) in [0, 1], the connected region >= ``delta`` with the largest sum.

    Cells are connected by an edge. The cells around the region, below ``delta``, are kept too, so that upsampling
    leaves its outline about where it was; all remaining cells become 0. A box scales its map again, so it is put around
    what exceeds ``delta`` of the region's own maximum. There is neither a loop over the cells nor a wait for a GPU:
    squaring the matrix of neighbours log2(u v) times finds what is connected. That takes (u v)^3 log2(u v)
    multiplications: little for the 7 x 7 to 14 x 14 cells of a last stage, 0.1 s per image on a core for 28 x 28.
    """
    cells = maps.shape[1] * maps.shape[2]
    images = max(1, 2**25 // cells**2)  # a matrix takes 128 MiB; there are two, and their neighbours as bytes
    return torch.cat([_largest_region(maps[first : first + images], delta) for first in range(0, len(maps), images)])


def _largest_region(maps: Tensor, delta: float) -> Tensor:
    count, u, v = maps.shape
    flat = maps.flatten(1)
    above = (flat >= delta) & (flat > 0.0)
    place = torch.cartesian_prod(torch.arange(u, device=maps.device), torch.arange(v, device=maps.device))
    offset = (place[:, None] - place).abs()
    connected = ((offset.sum(2) <= 1) & above[:, :, None] & above[:, None]).float()
    for _ in range(math.ceil(math.log2(max(2, u * v)))):
        connected = (connected @ connected).clamp_max_(1.0)
    sums = (connected @ (flat * above)[..., None])[..., 0]
    region = connected.gather(1, sums.argmax(1)[:, None, None].expand(-1, 1, u * v))
    around = (region @ (offset.amax(2) <= 1).float())[:, 0] > 0
    return torch.where((region[:, 0] > 0) | (around & ~above), flat, 0.0).view(count, u, v)


def scaled_map(features: Tensor, weights: Tensor, normalize: Normalize) -> Tensor:
    """The map (Eq. 3) scaled to [0, 1]: (B, C, u, v), (B, C) -> (B, u, v) float32.

    A map that is constant or not finite cannot be scaled: it is zero, and so has no influence on an average.
    """
    coarse = torch.einsum("bcuv,bc->buv", features.float(), weights).relu()
    low = coarse.amin((1, 2), keepdim=True) if normalize == "minmax" else torch.zeros_like(coarse[:, :1, :1])
    span = coarse.amax((1, 2), keepdim=True) - low
    return torch.where(span.isfinite() & (span > 0.0), (coarse - low) / span, 0.0)
