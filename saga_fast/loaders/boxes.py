"""Operations on boxes [x_min, y_min, w, h] in fractions of an image's sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.kernels.sample_windows.reference import SNAP

Int64 = npt.NDArray[np.int64]

WHOLE = np.array([0, 0, 1, 1], np.float32)
"""The box that is the whole image."""


def box_iou(boxes: npt.NDArray[Any], reference_boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Intersection over union of two boxes per row: (N, 4), (N, 4) -> (N,)."""
    near = np.maximum(boxes[:, :2], reference_boxes[:, :2])
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], reference_boxes[:, :2] + reference_boxes[:, 2:])
    shared = np.prod(np.maximum(far - near, 0.0), axis=1)
    iou: npt.NDArray[Any] = shared / (np.prod(boxes[:, 2:], axis=1) + np.prod(reference_boxes[:, 2:], axis=1) - shared)
    return iou


def pixel_rectangles(boxes: npt.NDArray[np.float32], sizes: Int64) -> npt.NDArray[np.int32]:
    """The pixel rectangles of boxes: floor of the near edge, ceil of the far edge, at least 1 px, inside the image.

    The rule of :func:`saga_fast.kernels.sample_windows`.

    Args:
        boxes: (B, 4) [x_min, y_min, w, h], normalised.
        sizes: (B, 2) height and width of the images.

    Returns:
        (B, 4) int32 [top, left, height, width].
    """
    extent, exact = sizes[:, ::-1], boxes.astype(np.float64)
    near = np.clip(np.floor(exact[:, :2] * extent + SNAP), 0, extent - 1)
    far = np.minimum(np.maximum(np.ceil((exact[:, :2] + exact[:, 2:]) * extent - SNAP), near + 1), extent)
    return np.concatenate([near[:, ::-1], (far - near)[:, ::-1]], 1).astype(np.int32)


def widen_boxes(boxes: npt.NDArray[np.float32], min_side: float) -> npt.NDArray[np.float32]:
    """Boxes (B, 4) float32 whose sides are at least ``min_side``, a fraction of the image's side.

    A widened box keeps its centre, unless it has to move to stay in the image.
    """
    near = np.maximum(boxes[:, :2], 0.0)
    far = np.minimum(boxes[:, :2] + boxes[:, 2:], 1.0)
    sides = np.maximum(far - near, min_side)
    near = np.clip(0.5 * (near + far - sides), 0.0, 1.0 - sides)
    return np.concatenate([near, sides], 1).astype(np.float32)
