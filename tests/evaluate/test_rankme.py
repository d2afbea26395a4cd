"""RankMe against the paper's equation with NumPy's singular values, in float64."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.evaluate import rankme as module
from saga_fast.evaluate.rankme import rankme


def expected(features: npt.NDArray[np.float32]) -> float:
    """The definition, with a sum over min(N, D) values."""
    total, sigma = 0.0, np.linalg.svd(features.astype(np.float64), compute_uv=False)
    assert len(sigma) == min(features.shape)
    for value in sigma:
        share = value / sigma.sum() + 1e-7
        total -= share * np.log(share)
    return float(np.exp(total))


def random(rows: int, dim: int, rank: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Features of this rank, with singular values over four orders of magnitude."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, rank)) * np.logspace(0, -4, rank)
    return (factors @ rng.normal(size=(rank, dim))).astype(np.float32)


@pytest.mark.parametrize(("rows", "dim", "rank"), [(200, 12, 12), (50, 33, 7), (9, 40, 9), (40, 40, 40), (1, 5, 1)])
def test_papers_definition(rows: int, dim: int, rank: int) -> None:
    features = random(rows, dim, rank)
    # Singular values below float32's rounding, of features that are not of full rank, differ at the size of EPSILON.
    assert rankme(torch.from_numpy(features)) == pytest.approx(expected(features), rel=1e-5)


def test_known_ranks() -> None:
    assert rankme(torch.eye(6).repeat(7, 1)) == pytest.approx(6.0, rel=1e-5)
    assert rankme(torch.ones(30, 6)) == pytest.approx(1.0, rel=1e-4)
    assert rankme(torch.zeros(30, 6)) == pytest.approx(1.0, rel=1e-4)  # a network that has collapsed


def test_many_images_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 10)
    features = random(37, 8, 8)
    evenly = features[[0, 3, 7, 11, 14, 18, 22, 25, 29, 33]]
    assert rankme(torch.from_numpy(features)) == pytest.approx(expected(evenly), rel=1e-5)
    assert rankme(torch.from_numpy(evenly)) == pytest.approx(expected(evenly), rel=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features: Tensor = torch.rand(5, 4)
    features[3, 2] = value
    with pytest.raises(SagaError, match="features of 1 of 5 images are not finite"):
        rankme(features)
