"""Comparison of what two loaders give."""

from collections.abc import Iterable

import numpy as np

from saga_fast.loaders import Batch, Loader


def assert_same_batches(ours: Iterable[Batch], expected: Iterable[Batch]) -> None:
    """Indices, labels and views are equal, to the byte."""
    for one, other in zip(ours, expected, strict=True):
        assert one.index.tolist() == other.index.tolist()
        assert one.label.tolist() == other.label.tolist()
        np.testing.assert_array_equal(one.views.numpy(), other.views.numpy())


def assert_same_epochs(ours: Loader, expected: Loader, epochs: int = 2) -> None:
    """The first epochs of both are equal, to the byte."""
    for epoch in range(epochs):
        ours.set_epoch(epoch)
        expected.set_epoch(epoch)
        assert_same_batches(ours, expected)
