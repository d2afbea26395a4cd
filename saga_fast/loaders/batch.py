"""A batch of views: what the engines yield."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.kernels import crop_resize
from saga_fast.kernels.crop_resize import ImageTable
from saga_fast.loaders.plan import Plan
from saga_fast.loaders.source import Source


@dataclass(frozen=True)
class Batch:
    """One batch, on the CPU except for views that were cropped on a GPU.

    Attributes:
        views: (B, V, S, S, 3) uint8, before photometric augmentation and normalisation.
        index: (B,) int64, the images' positions in the data set.
        label: (B,) int64, -1 where there is none.
        more: the plan's further views, a tensor (B, count, size, size, 3) uint8 for each of ``plan.more``.
    """

    views: torch.Tensor
    index: torch.Tensor
    label: torch.Tensor
    more: tuple[torch.Tensor, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its views on ``device``, copied without blocking."""
        views, *more = (each.to(device, non_blocking=True) for each in (self.views, *self.more))
        return replace(self, views=views, more=tuple(more))


def crop_batch(images: Sequence[torch.Tensor] | ImageTable, windows: npt.NDArray[np.int32], plan: Plan) -> torch.Tensor:
    """All views of B >= 1 images (H, W, 3) uint8 of any sizes: windows (B, V, 4) -> (B, view_bytes) on their device."""
    if not isinstance(images, ImageTable) and images[0].is_cuda:
        images = ImageTable.of(images)
    parts, begin = [], 0
    for side, count in plan.groups:
        parts.append(crop_resize(images, windows[:, begin : begin + count], side).flatten(1))
        begin += count
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def make_batch(views: torch.Tensor, indices: npt.NDArray[np.int64], source: Source, plan: Plan) -> Batch:
    """The batch of views (B, view_bytes) uint8, which hold each image's views in the plan's order."""
    groups, begin = [], 0
    for side, count in plan.groups:
        end = begin + 3 * side * side * count
        groups.append(views[:, begin:end].view(len(views), count, side, side, 3))
        begin = end
    return Batch(groups[0], torch.from_numpy(indices), torch.from_numpy(source.labels[indices]), tuple(groups[1:]))
