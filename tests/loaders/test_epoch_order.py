"""The order of an epoch: a function of (seed, epoch), the same one whether it is made in blocks or as a whole."""

import threading

import numpy as np
import numpy.typing as npt
import pytest

from saga_fast.kernels.philox import ORDER, draw
from saga_fast.loaders.order import EpochOrder, epoch_order

N = 1000
NONE = np.empty(0, np.int64)
BAD = np.array([0, 7, 500, 501, 999])


def order(*, shuffle: bool = True, without: npt.NDArray[np.int64] = NONE, block: int = 2**22) -> EpochOrder:
    return epoch_order(N, seed=3, epoch=2, shuffle=shuffle, without=without, block=block)


def test_a_shuffle_sorts_keys_of_64_bits() -> None:
    u = draw(3, 2, np.arange(N), purpose=ORDER)
    keys = u[:, 0] + u[:, 1] * 2.0**-32
    assert order().indices().tolist() == np.argsort(keys, kind="stable").tolist()


@pytest.mark.parametrize("block", [1, 7, 100, 999, 1000])
@pytest.mark.parametrize("without", [NONE, BAD])
def test_blocks_are_the_whole_order(block: int, without: npt.NDArray[np.int64]) -> None:
    whole, blocks = order(without=without), order(without=without, block=block)
    expected = whole.indices()
    assert sorted(expected.tolist()) == sorted(set(range(N)) - set(without.tolist()))
    assert len(blocks) == len(whole) == N - len(without)
    assert blocks.indices().tolist() == expected.tolist()
    assert blocks.digest() == whole.digest()
    for start in (0, 3, 250, 900, 10):  # forwards, and back
        positions = np.arange(start, start + 90)
        assert blocks.at(positions).tolist() == expected[positions].tolist()
    blocks.close()


def test_blocks_of_every_process_are_parts_of_one_order() -> None:
    whole = order().indices()
    for rank in range(4):
        blocks = order(block=64)
        for number in range(N // 40):
            positions = number * 40 + rank * 10 + np.arange(10)
            assert blocks.at(positions).tolist() == whole[positions].tolist()
        blocks.close()


def test_a_closed_order_leaves_no_thread() -> None:
    blocks = order(block=100)
    blocks.at(np.arange(10))
    assert any(thread.name.startswith("saga-fast-order") for thread in threading.enumerate())
    blocks.close()
    assert not any(thread.name.startswith("saga-fast-order") for thread in threading.enumerate())


def test_ascending_orders_know_positions() -> None:
    ascending = order(shuffle=False, without=BAD)
    assert ascending.indices().tolist() == sorted(set(range(N)) - set(BAD.tolist()))
    assert [ascending.position(image) for image in (1, 8, 502, 998)] == [0, 6, 498, 994]
    few = epoch_order(N, seed=0, epoch=0, shuffle=False, without=BAD, images=np.array([900, 7, 3]))
    assert few.indices().tolist() == [3, 900]
    assert few.position(900) == 1


def test_given_images_are_shuffled_as_in_the_whole_order() -> None:
    images = np.array([1, 7, 30, 500, 620])
    few = epoch_order(N, seed=3, epoch=2, shuffle=True, without=BAD, images=images).indices()
    assert few.tolist() == [image for image in order(without=BAD).indices() if image in images]


def test_an_empty_order_has_no_images() -> None:
    for shuffle in (False, True):
        empty = epoch_order(0, seed=0, epoch=0, shuffle=shuffle, without=NONE)
        assert len(empty) == 0
        assert empty.indices().tolist() == []
