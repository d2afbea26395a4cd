"""Overlap of boxes."""

import numpy as np

from saga_fast.loaders.boxes import box_iou


def test_box_iou() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.1, 0.2, 0.4, 0.4], [0, 0, 0.5, 1], [0.2, 0.2, 0.2, 0.2]])
    others = np.array([[0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.3, 0.4, 0.4, 0.4], [0, 0, 1, 0.5], [0.0, 0.0, 1.0, 1.0]])
    expected = [1.0, 0.0, 0.04 / 0.28, 0.25 / 0.75, 0.04]
    np.testing.assert_allclose(box_iou(boxes, others), expected, atol=1e-12)
    np.testing.assert_allclose(box_iou(others, boxes), expected, atol=1e-12)


def test_box_iou_counts_pixels() -> None:
    rng = np.random.default_rng(0)
    edges = np.sort(rng.integers(0, 21, (2, 200, 2, 2)), axis=2)  # box, row, near and far, axis
    edges[:, :, 1] += edges[:, :, 0] == edges[:, :, 1]
    masks = np.zeros((2, 200, 21, 21), np.bool_)
    for box, row in np.ndindex(2, 200):
        (x0, y0), (x1, y1) = edges[box, row]
        masks[box, row, y0:y1, x0:x1] = True
    expected = (masks[0] & masks[1]).sum((1, 2)) / (masks[0] | masks[1]).sum((1, 2))
    first, second = (np.concatenate([e[:, 0], e[:, 1] - e[:, 0]], 1) / 21 for e in edges)
    np.testing.assert_allclose(box_iou(first, second), expected, atol=1e-12)
    assert 0.0 < expected.mean() < 1.0
