"""What every engine yields."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """One batch, on the CPU; the views on the GPU where they were cropped there.

    Attributes:
        views: (B, V, S, S, 3) uint8, before photometric augmentation and normalisation.
        index: (B,) int64, the images' positions in the data set.
        label: (B,) int64, -1 where there is none.
    """

    views: torch.Tensor
    index: torch.Tensor
    label: torch.Tensor
