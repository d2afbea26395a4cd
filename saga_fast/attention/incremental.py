"""Incremental renewal of D^att: the images that a renewal computes anew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saga_fast.loaders import BoxTable
from saga_fast.loaders.boxes import box_iou

Int64 = npt.NDArray[np.int64]

UNCHANGED_IOU = 0.9
"""An image's box counts as unchanged from this IoU of its last two boxes on."""
TURN = 4
"""Renewals after which an image with an unchanged box is computed again."""


def changed_images(latest: BoxTable, before: BoxTable | None, *, renewal: int) -> Int64:
    """The indices of the images to compute anew, ascending (n,) int64; the remaining images keep their boxes.

    These are the images whose boxes in the last two tables have an IoU below UNCHANGED_IOU, and one in TURN of the
    remaining images, because the network goes on changing. An image that the last renewal left out counts as unchanged.

    Args:
        latest, before: the tables of the last renewal and of the one before it; without a ``before`` all
            images are computed.
        renewal: the number of this one, from 0.
    """
    indices = np.arange(len(latest))
    if before is None:
        return indices
    in_turn = (indices + renewal) % TURN == 0
    return np.flatnonzero((box_iou(latest.boxes, before.boxes) < UNCHANGED_IOU) | in_turn)
