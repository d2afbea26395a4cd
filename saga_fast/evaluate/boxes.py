"""Quality of attention boxes where true boxes are known: IoU, CorLoc, area, and drift between renewals.

An image may have several true boxes; the best overlap counts, as usual for CorLoc (Deselaers et al., IJCV 2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.loaders import BoxTable
from saga_fast.loaders.boxes import WHOLE, box_iou
from saga_fast.loaders.true_boxes import TrueBoxes

Float32 = npt.NDArray[np.float32]


def best_iou(boxes: Float32, truths: Sequence[Float32]) -> npt.NDArray[np.float64]:
    """The IoU of each box with the best of its image's true boxes: (N, 4), N times (n, 4) -> (N,)."""
    counts = [len(truth) for truth in truths]
    overlaps = box_iou(np.repeat(boxes, counts, axis=0), np.concatenate(truths))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.maximum.reduceat(overlaps, starts).astype(np.float64)


def box_quality(table: BoxTable, images: Sequence[str], truths: TrueBoxes) -> dict[str, Any]:
    """Quality figures of a table, over the images whose true boxes are known.

    Returns:
        ``images``, their number; mean ``iou``; ``corloc``, the fraction with IoU >= 0.5; ``iou_whole`` and
        ``corloc_whole``, those of the whole image as the box, which any table should beat; mean ``area`` and
        ``found_fraction`` of the table; mean ``true_area`` of the true boxes.
    """
    rows = [row for row, image in enumerate(images) if image in truths]
    known = [truths[images[row]] for row in rows]
    overlap = best_iou(table.boxes[rows], known)
    whole = best_iou(np.tile(WHOLE, (len(rows), 1)), known)
    return {
        "images": len(rows),
        "iou": float(overlap.mean()),
        "corloc": float((overlap >= 0.5).mean()),
        "iou_whole": float(whole.mean()),
        "corloc_whole": float((whole >= 0.5).mean()),
        "area": table.mean_area,
        "found_fraction": table.found_fraction,
        "true_area": float(np.mean([np.prod(truth[:, 2:], axis=1).mean() for truth in known])),
    }


def drift(earlier: BoxTable, later: BoxTable) -> float:
    """1 - mean IoU of the boxes in two tables of one data set: 0 if no box moved.

    Raises:
        SagaError: tables of different lengths or data sets.
    """
    earlier.check(later.metadata.get("dataset", earlier.metadata.get("dataset", "")), len(later))
    return 1.0 - float(box_iou(earlier.boxes, later.boxes).mean())


MAX_AREA, MIN_AGREEMENT = 0.7, 0.5
"""Limits of :func:`unhelpful`; docs/study.md has the figures of boxes that helped and of boxes that did not."""


def chance_agreement(table: BoxTable) -> float:
    """Mean IoU of the boxes with those of other images: the agreement of two tables of unrelated boxes; 0 for one."""
    if len(table) < 2:
        return 0.0
    order = np.random.default_rng(0).permutation(len(table))
    return float(box_iou(table.boxes[order], np.roll(table.boxes[order], 1, axis=0)).mean())


def unhelpful(area: float, agreement: float | None, chance: float) -> str | None:
    """Why crops from these boxes will hardly help, as far as the boxes alone can tell; None if nothing speaks against.

    The agreement of two renewals is corrected for chance, as Cohen's kappa is: 0 for boxes that belong to other
    images, 1 for boxes that did not move.

    Args:
        area: mean area, of 1 for the whole image.
        agreement: mean IoU with the boxes of the renewal before; None for the first renewal.
        chance: see :func:`chance_agreement`.
    """
    if area > MAX_AREA:
        return (
            f"they cover {100 * area:.0f} % of an image on average, so that their crops are like those of whole images"
        )
    if chance > 0.999:
        return "they are the same in all images"
    if agreement is not None and (agreement - chance) / (1.0 - chance) < MIN_AGREEMENT:
        return (
            f"they agree little from one renewal to the next (IoU {agreement:.2f}; boxes of other images have"
            f" {chance:.2f}), so that they do not follow what is in an image"
        )
    return None
