"""Pasted views: an image's attention crop on a crop of another image, so that two views share no background."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.kernels.philox import PASTE, uniforms_torch
from saga_fast.runtime.device import to_device

SIDES = (0.3, 0.9)
"""Range of the pasted crop's side over the view's."""


@torch.no_grad()
def paste_views(views: Tensor, index: Tensor, *, seed: int, epoch: int, share: float) -> Tensor:
    """The views of ``attention.views: paste``: (B, V + 1, 3, S, S) -> (B, V, 3, S, S), in the same format.

    With probability ``share``, view 1, an attention crop, is shrunk and pasted at a random place onto view 0 of the
    batch's previous image; that and the remaining attention crops are the result. The views of an image then have its
    object in common and no surroundings (cf. Yang et al., "Instance localization for self-supervised detection
    pretraining", CVPR 2021, and Wang et al., "CP2: copy-paste contrastive pretraining", ECCV 2022). Otherwise view 0
    stays as it is, as with ``mixed``.

    Args:
        views: a crop of the whole image, then attention crops; augmented and normalised.
        index: (B,) int64, which with ``seed`` and ``epoch`` determines size and place. The image below is the one
            before it in the batch of this process, which depends on the number of processes; in a batch of one image
            it is the image itself.
        share: probability that an image's view 0 is pasted.
    """
    wide, crop, size = views[:, 0], views[:, 1], views.shape[-1]
    drawn = uniforms_torch(seed, epoch, to_device(index, views.device), purpose=PASTE, blocks=1).float()
    side = SIDES[0] + (SIDES[1] - SIDES[0]) * drawn[:, 1]
    centre = (1.0 - side)[:, None] * (2.0 * drawn[:, 2:4] - 1.0)
    # An axis of the view, in [-1, 1] -> the same axis of the crop: (B, S) each.
    axis = (torch.arange(size, device=views.device) + 0.5) * (2.0 / size) - 1.0
    x, y = (((axis - centre[:, i, None]) / side[:, None]) for i in (0, 1))
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], 3)
    pasted = F.grid_sample(crop.float(), grid, padding_mode="border", align_corners=False)
    is_pasted = (drawn[:, 0] < share)[:, None, None, None]
    covered = (grid.abs() <= 1.0).all(3)[:, None] & is_pasted
    result = views[:, 1:].clone()
    below = torch.where(is_pasted, wide.roll(1, 0), wide)
    result[:, 0] = torch.where(covered, pasted.to(views.dtype), below)
    return result
