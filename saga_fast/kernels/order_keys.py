"""The random keys by which an epoch's images are sorted, a range of them at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels._jit import jit
from saga_fast.kernels.philox import ORDER, TO_UNIT, uniforms

_BUFFER = 1024


@jit()
def _key(seed: Any, epoch: Any, index: Any) -> Any:
    high, low, _, _ = uniforms(seed, epoch, index, 0, ORDER, 0)
    return high + low * TO_UNIT


@jit()
def _range(key: Any, ranges: Any) -> Any:
    return min(int(key * ranges), ranges - 1)  # a key may round to 1


@jit()
def _fill(seed: Any, epoch: Any, start: Any, keys: Any) -> None:
    for at in range(keys.shape[0]):
        keys[at] = _key(seed, epoch, start + at)


# Keys are made for a buffer first: LLVM vectorises that loop, which then takes 4 ns per key instead of 16.
@jit()
def _count(seed: Any, epoch: Any, n: Any, counts: Any) -> None:
    buffer = np.empty(_BUFFER, np.float64)
    for start in range(0, n, _BUFFER):
        keys = buffer[: min(_BUFFER, n - start)]
        _fill(seed, epoch, start, keys)
        for at in range(keys.shape[0]):
            counts[_range(keys[at], counts.shape[0])] += 1


@jit()
def _collect(seed: Any, epoch: Any, n: Any, ranges: Any, number: Any, indices: Any, collected: Any) -> None:
    buffer, count = np.empty(_BUFFER, np.float64), 0
    for start in range(0, n, _BUFFER):
        keys = buffer[: min(_BUFFER, n - start)]
        _fill(seed, epoch, start, keys)
        for at in range(keys.shape[0]):
            if _range(keys[at], ranges) == number:
                indices[count], collected[count] = start + at, keys[at]
                count += 1


@jit()
def _keys(seed: Any, epoch: Any, indices: Any, keys: Any) -> None:
    for at in range(indices.shape[0]):
        keys[at] = _key(seed, epoch, indices[at])


def order_keys(seed: int, epoch: int, indices: NDArray) -> NDArray:
    """The keys of images, in [0, 1]: (B,) int64 -> (B,) float64."""
    keys = np.empty(len(indices), np.float64)
    _keys(np.uint64(seed), epoch, np.asarray(indices, np.int64), keys)
    return keys


def count_keys(seed: int, epoch: int, n: int, *, ranges: int) -> NDArray:
    """The number of images 0 to n - 1 whose key is in each of ``ranges`` equal ranges of [0, 1): (ranges,) int64."""
    counts = np.zeros(ranges, np.int64)
    _count(np.uint64(seed), epoch, n, counts)
    return counts


def sorted_range(seed: int, epoch: int, n: int, *, ranges: int, number: int, count: int) -> NDArray:
    """The images 0 to n - 1 whose key is in the ``number``-th of ``ranges`` ranges, sorted by key: (count,) int64.

    Args:
        seed, epoch, n, ranges: see :func:`count_keys`.
        number: of the range.
        count: the number of these images, from :func:`count_keys`.
    """
    indices, keys = np.empty(count, np.int64), np.empty(count, np.float64)
    _collect(np.uint64(seed), epoch, n, ranges, number, indices, keys)
    return indices[np.argsort(keys, kind="stable")]
