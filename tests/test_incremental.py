"""Which images an incremental renewal looks at."""

import numpy as np
import pytest

from saga_fast.incremental import TURNS, images_to_renew
from saga_fast.loaders import BoxTable

COUNT = 200


def table(moved: np.ndarray | None = None) -> BoxTable:
    """Boxes of a half of the image's side; those of ``moved`` lie elsewhere."""
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (COUNT, 1))
    if moved is not None:
        boxes[moved, 0] += 0.02 + 0.2 * np.arange(len(moved), dtype=np.float32) / len(moved)
    found = np.ones(COUNT, np.bool_)
    return BoxTable(boxes, found, np.zeros(COUNT, np.int32), np.zeros(COUNT, np.float32))


def test_changed() -> None:
    """What moved so that the IoU is below 0.9 (here, by more than 0.026 of the image), and a quarter of the rest."""
    moved = np.arange(50, 90)
    chosen = images_to_renew("changed", table(moved), table(), fraction=0.1, renewal=3, seed=0)
    shift = 0.02 + 0.2 * np.arange(40) / 40
    far = moved[(0.5 - shift) / (0.5 + shift) < 0.9]
    assert 30 < len(far) < 40
    turn = np.arange(COUNT)[(np.arange(COUNT) + 3) % TURNS == 0]
    np.testing.assert_array_equal(chosen, np.union1d(far, turn))


def test_changed_takes_everything_while_nothing_is_known() -> None:
    chosen = images_to_renew("changed", table(), None, fraction=0.1, renewal=1, seed=0)
    np.testing.assert_array_equal(chosen, np.arange(COUNT))


def test_changed_has_looked_at_every_image_after_its_turns() -> None:
    looked = [images_to_renew("changed", table(), table(), fraction=0.1, renewal=r, seed=0) for r in range(TURNS)]
    np.testing.assert_array_equal(np.sort(np.concatenate(looked)), np.arange(COUNT))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.3, 1.0])
def test_fraction_takes_turns(fraction: float) -> None:
    """So many images, whatever has moved; and every image comes within 1 / fraction renewals, rounded up."""
    moved = np.arange(20, 60)
    looked = []
    for renewal in range(5, 5 + int(np.ceil(1 / fraction))):
        chosen = images_to_renew("fraction", table(moved), table(), fraction=fraction, renewal=renewal, seed=5)
        assert len(chosen) == len(set(chosen.tolist())) == round(fraction * COUNT)
        assert (np.diff(chosen) > 0).all()
        looked.append(chosen)
    np.testing.assert_array_equal(np.unique(np.concatenate(looked)), np.arange(COUNT))


def test_fraction_is_no_run_of_neighbours() -> None:
    """Neighbours are of one class: each renewal takes some of all."""
    chosen = images_to_renew("fraction", table(), None, fraction=0.25, renewal=1, seed=0)
    assert len(np.intersect1d(chosen, np.arange(100))) in range(15, 36)


def test_fraction_of_very_few_images() -> None:
    chosen = images_to_renew("fraction", table(), None, fraction=0.001, renewal=1, seed=0)
    assert len(chosen) == 1
