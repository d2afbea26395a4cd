"""Which images an incremental renewal looks at."""

import numpy as np

from saga_fast.attention.incremental import TURN, changed_images
from saga_fast.loaders import BoxTable

COUNT = 200


def table(moved: np.ndarray | None = None) -> BoxTable:
    """Boxes of a half of the image's side; those of ``moved`` lie elsewhere."""
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (COUNT, 1))
    if moved is not None:
        boxes[moved, 0] += 0.02 + 0.2 * np.arange(len(moved), dtype=np.float32) / len(moved)
    found = np.ones(COUNT, np.bool_)
    return BoxTable(boxes, found, np.zeros(COUNT, np.int32), np.zeros(COUNT, np.float32))


def test_boxes_that_moved_and_a_quarter_of_the_rest() -> None:
    """Boxes that moved by more than 0.026 of the image have an IoU below 0.9."""
    moved = np.arange(50, 90)
    chosen = changed_images(table(moved), table(), renewal=3)
    shift = 0.02 + 0.2 * np.arange(40) / 40
    far = moved[(0.5 - shift) / (0.5 + shift) < 0.9]
    assert 30 < len(far) < 40
    turn = np.arange(COUNT)[(np.arange(COUNT) + 3) % TURN == 0]
    np.testing.assert_array_equal(chosen, np.union1d(far, turn))


def test_all_images_without_an_earlier_table() -> None:
    chosen = changed_images(table(), None, renewal=1)
    np.testing.assert_array_equal(chosen, np.arange(COUNT))


def test_every_image_is_computed_within_turn_renewals() -> None:
    computed = [changed_images(table(), table(), renewal=r) for r in range(TURN)]
    np.testing.assert_array_equal(np.sort(np.concatenate(computed)), np.arange(COUNT))
