"""jigsaw_patches with torch: random draws and one gather, on the images' device.

Tensor names: B images, C channels, P patch side.
"""

from __future__ import annotations

from typing import Any

import torch

from saga_fast.kernels._dispatch import Array
from saga_fast.kernels.philox import JIGSAW, uniforms_torch


def jigsaw_patches_torch(images: Array, patch: int, seed: int, epoch: int, indices: Array) -> Any:
    """See :func:`saga_fast.kernels.jigsaw_patches`."""
    if not isinstance(images, torch.Tensor):
        tensors = torch.from_numpy(images), torch.as_tensor(indices)
        return jigsaw_patches_torch(tensors[0], patch, seed, epoch, tensors[1]).numpy()
    cell = images.shape[2] // 3
    u = uniforms_torch(seed, epoch, torch.as_tensor(indices), purpose=JIGSAW, blocks=7)
    order_B9 = u[:, 18:27].argsort(dim=1, stable=True)
    offset_B92 = (u[:, :18] * (cell - patch + 1)).long().view(-1, 9, 2)
    offset_B92 = offset_B92.gather(1, order_B9[:, :, None].expand(-1, -1, 2))
    top_B9, left_B9 = order_B9 // 3 * cell + offset_B92[..., 0], order_B9 % 3 * cell + offset_B92[..., 1]
    squares = images.unfold(2, patch, 1).unfold(3, patch, 1)  # a view that indexes all squares by their top left corner
    row_B1 = torch.arange(len(images), device=images.device)[:, None]
    return squares[row_B1, :, top_B9, left_B9]
