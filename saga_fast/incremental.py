"""Which images a renewal of D^att looks at, when it does not look at all of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from saga_fast.attention import box_iou
from saga_fast.loaders import BoxTable
from saga_fast.loaders.order import epoch_order

Int64 = npt.NDArray[np.int64]

STILL = 0.9
"""IoU of an image's last two boxes from which it counts as not having changed."""
TURNS = 4
"""``changed``: an image whose box stands still is looked at in every so many renewals."""


def images_to_renew(
    renew: Literal["changed", "fraction"],
    latest: BoxTable,
    before: BoxTable | None,
    *,
    fraction: float,
    renewal: int,
    seed: int,
) -> Int64:
    """The indices to compute, ascending; the other images keep their boxes.

    Args:
        renew: ``changed``: the images whose boxes in the last two tables have an IoU below STILL, and every TURNS-th of
            the others, because the network goes on changing; one that the last renewal left out counts as still.
            ``fraction``: so many of the images in turn.
        latest, before: the tables of the last renewal and of the one before it; without a ``before`` nothing is known
            to have changed, and ``changed`` takes all images.
        fraction: of the images, for ``fraction``.
        renewal: the number of this one, from 0.
        seed: of the order in which ``fraction`` takes turns.
    """
    count = len(latest)
    indices = np.arange(count)
    if renew == "changed":
        if before is None:
            return indices
        in_turn = (indices + renewal) % TURNS == 0
        return np.flatnonzero((box_iou(latest.boxes, before.boxes) < STILL) | in_turn)
    # Turns alone: with half of the fraction for what had moved most, boxes were farther from a whole renewal's than
    # with the fraction drawn at random, because who has just been looked at is up to date.
    budget = max(1, round(fraction * count))
    order = epoch_order(count, seed=seed, epoch=0, shuffle=True, without=indices[:0])
    return np.sort(order[(renewal * budget + np.arange(budget)) % count])
