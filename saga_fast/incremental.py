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

    An image has changed if its boxes in the last two tables have an IoU below STILL, so one that the last renewal left
    out counts as still. Those that stand still are looked at in turn, because the network goes on changing.

    Args:
        renew: ``changed``: those that have, and every TURNS-th of the others. ``fraction``: so many images,
            half of them the most changed and the rest those whose turn it is.
        latest, before: the tables of the last renewal and of the one before it; without a ``before`` nothing is known
            to have changed: ``changed`` takes all images.
        fraction: of the images, for ``fraction``.
        renewal: the number of this one, from 0.
        seed: of the order in which ``fraction`` takes turns.
    """
    count = len(latest)
    indices = np.arange(count)
    overlap = np.ones(count) if before is None else box_iou(latest.boxes, before.boxes)
    if renew == "changed":
        in_turn = (indices + renewal) % TURNS == 0
        return indices if before is None else indices[(overlap < STILL) | in_turn]
    budget = max(1, round(fraction * count))
    changed = np.argsort(overlap, kind="stable")
    changed = changed[: min(budget // 2, int((overlap < STILL).sum()))]
    # A fixed shuffled order, gone through from renewal to renewal: every image has its turn, whatever changes.
    order = np.roll(epoch_order(count, seed=seed, epoch=0, shuffle=True, without=changed[:0]), -renewal * (budget // 2))
    rest = order[~np.isin(order, changed)][: budget - len(changed)]
    return np.sort(np.concatenate([changed, rest]))
