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
