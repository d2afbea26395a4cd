"""philox: the published test vectors in NumPy and Numba, and draws that depend only on their key."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from saga_fast.kernels import philox as module
from saga_fast.kernels.philox import draw, philox, philox_reference, uniforms_reference

Words = tuple[int, ...]

# Random123's file kat_vectors, lines of philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS: list[tuple[Words, Words, Words]] = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
PURPOSES = (module.WINDOW, module.PHOTOMETRIC, module.SHARE, module.ORDER, module.SUBSTITUTE)
INDICES = np.array([0, 1, 2, 1_281_166, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1])


def reference_draws(
    seed: int, epoch: int, indices: npt.NDArray[Any], view: int, purpose: int, block: int
) -> npt.NDArray[Any]:
    return np.stack([uniforms_reference(seed, epoch, int(index), view, purpose, block) for index in indices])


def test_known_answers_numpy() -> None:
    counters, keys, answers = (np.array(words, np.uint32) for words in zip(*KNOWN_ANSWERS, strict=True))
    np.testing.assert_array_equal(philox_reference(counters, keys), answers)
    np.testing.assert_array_equal(philox_reference(counters[2], keys[2]), answers[2])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers_numba(counter: Words, key: Words, answer: Words) -> None:
    assert philox(*(np.uint32(word) for word in counter + key)) == answer


def test_the_counter_has_the_documented_layout() -> None:
    """The fields packed in the counter and key of the third known answer give the third known answer."""
    counter, key, answer = KNOWN_ANSWERS[2]
    block, view, purpose = counter[0] >> 16, counter[0] >> 8 & 0xFF, counter[0] & 0xFF
    index, seed = counter[3] << 32 | counter[2], key[1] << 32 | key[0]
    expected = np.array(answer, np.float64)[None] / 2**32
    drawn = draw(seed, counter[1], np.array([index]), purpose=purpose, view=view, block=block)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(uniforms_reference(seed, counter[1], index, view, purpose, block), expected[0])


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40 + 7, 2**64 - 1])
@pytest.mark.parametrize(("epoch", "view", "purpose", "block"), [(0, 0, 1, 0), (37, 1, 2, 3), (2**32 - 1, 255, 5, 9)])
def test_draw_equals_reference(seed: int, epoch: int, view: int, purpose: int, block: int) -> None:
    drawn = draw(seed, epoch, INDICES, purpose=purpose, view=view, block=block)
    assert drawn.dtype == np.float64
    np.testing.assert_array_equal(drawn, reference_draws(seed, epoch, INDICES, view, purpose, block))


def test_a_draw_does_not_depend_on_its_batch() -> None:
    indices = np.random.default_rng(0).permutation(101) * 2**27
    whole = draw(5, 3, indices, purpose=module.ORDER)
    for parts in (2, 7, 101):
        split = [draw(5, 3, part, purpose=module.ORDER) for part in np.array_split(indices, parts)]
        np.testing.assert_array_equal(np.concatenate(split), whole)
    np.testing.assert_array_equal(draw(5, 3, indices[::-1], purpose=module.ORDER), whole[::-1])


def test_empty_batch() -> None:
    assert draw(5, 3, np.zeros(0, np.int64), purpose=module.SHARE).shape == (0, 4)


def test_all_fields_of_the_key_change_the_draw() -> None:
    """All draws of a grid of seeds, epochs, views, purposes, blocks and indices differ."""
    grid = product((0, 1, 2**32), (0, 1), (0, 1, 7), PURPOSES, (0, 1, 9))
    drawn = [draw(s, e, INDICES, purpose=p, view=v, block=b) for s, e, v, p, b in grid]
    assert len(set(PURPOSES)) == len(PURPOSES)
    rows = np.concatenate(drawn)
    assert len(np.unique(rows, axis=0)) == len(rows) == 3 * 2 * 3 * 5 * 3 * len(INDICES)
    assert 0.0 <= rows.min() < 0.01 and 0.99 < rows.max() < 1.0


def test_threads_can_draw_concurrently() -> None:
    """Numba's workqueue layer would abort the process if draw were a parallel kernel without a lock."""
    indices = np.arange(1001)

    def draw_epoch(epoch: int) -> npt.NDArray[Any]:
        return draw(1, epoch, indices, purpose=module.WINDOW)

    with ThreadPoolExecutor(4) as pool:
        draws = list(pool.map(draw_epoch, range(40)))
    for epoch, drawn in enumerate(draws):
        np.testing.assert_array_equal(drawn[::500], reference_draws(1, epoch, indices[::500], 0, module.WINDOW, 0))
