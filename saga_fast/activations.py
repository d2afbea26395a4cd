"""The last activations that an attention map is made of: of the image, or of the image and its mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.encoder import Encoder


def activations(encoder: Encoder, images: Tensor, *, mirror: bool) -> list[Tensor]:
    """A (B, C, u, v) of the images and, with ``mirror``, that of their mirror images, mirrored back.

    A convolution with a stride and padding looks left and right differently, and where it looks changes from image to
    mirror image while the object does not: what both agree on is the object.
    """
    looks = [encoder.features(images)]
    if mirror:
        looks.append(encoder.features(images.flip(3)).flip(3))
    return looks


def mean_of(looks: Sequence[Tensor]) -> Tensor:
    """The mean of activations; a single one is passed on as it is."""
    return looks[0] if len(looks) == 1 else torch.stack(tuple(looks)).mean(0)


def foreground_map(looks: Sequence[Tensor]) -> Tensor:
    """How much each cell differs from the background as the object does: (B, C, u, v) each -> (B, 1, u, v).

    x_ij = a_ij - b is a cell's difference from the background: a the activations scaled to length 1 at each cell,
    averaged over ``looks``, and b their mean over the cells at the image's border, the boundary prior of saliency
    detection (Wei et al., "Geodesic saliency using background priors", ECCV 2012). Then L = ReLU(x . w) with the
    direction w = sum_ij |x_ij|^4 x_ij, which the cells farthest from the background decide.
    """
    cells = mean_of([F.normalize(look.float(), dim=1) for look in looks])
    edges = (cells[..., 0, :], cells[..., -1, :], cells[..., 1:-1, 0], cells[..., 1:-1, -1])
    background = torch.cat(edges, dim=2).mean(2)
    difference = (cells - background[..., None, None]).flatten(2)
    direction = (difference * difference.square().sum(1, keepdim=True).square()).sum(2)
    foreground = torch.einsum("bcp,bc->bp", difference, direction).relu()
    return foreground.view(len(cells), 1, *cells.shape[2:])
