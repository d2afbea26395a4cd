"""sample_photometrics against the oracle, torchvision's ranges and the recipe's probabilities."""

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chisquare, kstest  # type: ignore[import-untyped]
from torchvision.transforms import v2

from saga_fast.kernels import PHOTOMETRIC_FIELDS, PhotometricRecipe, sample_photometrics

NDArray = npt.NDArray[Any]
JITTER = ("brightness", "contrast", "saturation", "hue")
# All numbers differ, so that a swap of two of them fails a test.
RECIPE = PhotometricRecipe(
    flip=0.5,
    brightness=0.4,
    contrast=0.3,
    saturation=1.5,
    hue=0.1,
    jitter=0.8,
    grayscale=0.2,
    blur=0.6,
    blur_sigma=(0.1, 2.0),
    blur_kernel=23,
    solarize=0.3,
    solarize_threshold=0.7,
)
DRAWS = 20_000


def column(values: NDArray, name: str) -> NDArray:
    return np.asarray(values[..., PHOTOMETRIC_FIELDS.index(name)])


def orders(values: NDArray) -> NDArray:
    """Return the order of the jitter steps (..., 4)."""
    first = PHOTOMETRIC_FIELDS.index("order_0")
    return values[..., first : first + 4].astype(int)


@pytest.fixture(scope="module")
def many() -> NDArray:
    """Return (DRAWS, P) draws of RECIPE."""
    return sample_photometrics(RECIPE, 3, 1, np.arange(DRAWS // 2), 2).reshape(DRAWS, -1)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        PhotometricRecipe(),
        PhotometricRecipe(flip=1.0, hue=0.5, contrast=2.0, grayscale=1.0, grayscale_first=True, solarize=1.0),
        PhotometricRecipe(jitter=0.3, saturation=0.8, blur=1.0, blur_sigma=(1.0, 1.0), blur_kernel=1),
    ],
    ids=["all", "neutral", "grayscale first", "blur"],
)
def test_numba_equals_reference(recipe: PhotometricRecipe) -> None:
    indices = np.arange(123) * (2**33 + 1)
    for seed, epoch, num_views in ((0, 0, 1), (2**40 + 5, 11, 3)):
        drawn = sample_photometrics(recipe, seed, epoch, indices, num_views, impl="numba")
        assert drawn.dtype == np.float32 and drawn.shape == (123, num_views, len(PHOTOMETRIC_FIELDS))
        oracle = sample_photometrics(recipe, seed, epoch, indices, num_views, impl="reference")
        np.testing.assert_array_equal(drawn, oracle)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_a_recipe_per_view(impl: str) -> None:
    """Each view has the parameters that it has where all views share its recipe."""
    recipes = [RECIPE, PhotometricRecipe(solarize=1.0, blur=0.5, blur_kernel=7), RECIPE]
    drawn = sample_photometrics(recipes, 5, 2, np.arange(101), 3, impl=impl)
    for view, recipe in enumerate(recipes):
        shared = sample_photometrics(recipe, 5, 2, np.arange(101), 3, impl=impl)
        np.testing.assert_array_equal(drawn[:, view], shared[:, view])
    with pytest.raises(ValueError, match="a recipe per view, got 3 recipes for 2 views"):
        sample_photometrics(recipes, 5, 2, np.arange(4), 2, impl=impl)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_a_neutral_recipe_changes_nothing(impl: str) -> None:
    drawn = sample_photometrics(PhotometricRecipe(), 0, 0, np.arange(101), 2, impl=impl)
    neutral = dict.fromkeys(PHOTOMETRIC_FIELDS, 0.0) | {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    for name, value in (neutral | {"blur_radius": 11.0, "solarize": 2.0}).items():
        if not name.startswith("order"):
            assert (column(drawn, name) == value).all(), name
    np.testing.assert_array_equal(np.sort(orders(drawn)), np.broadcast_to(np.arange(4), (101, 2, 4)))


def test_ranges_of_torchvision(many: NDArray) -> None:
    """Factors stay in the ranges of ColorJitter and the recipe, and reach within 1 % of their ends."""
    jitter = v2.ColorJitter(**{name: getattr(RECIPE, name) for name in JITTER})
    ranges = {name: getattr(jitter, name) for name in JITTER} | {"blur_sigma": RECIPE.blur_sigma}
    neutral = {"hue": 0.0, "blur_sigma": 0.0}
    for name, (low, high) in ranges.items():
        values = column(many, name)
        drawn = values[values != neutral.get(name, 1.0)]
        assert np.float32(low) <= drawn.min() < low + 0.01 * (high - low), name
        assert np.float32(high) >= drawn.max() > high - 0.01 * (high - low), name
        assert kstest(drawn, "uniform", (low, high - low)).pvalue > 0.01, name
    assert set(column(many, "flip")) == {0.0, 1.0}
    assert set(column(many, "blur_radius")) == {11.0}
    assert set(column(many, "solarize")) == {np.float32(0.7), 2.0}
    assert set(column(many, "grayscale")) == {0.0, 1.0}


def test_frequencies_and_independence(many: NDArray) -> None:
    """Frequencies are within four standard deviations and events uncorrelated; the seed is fixed."""
    events = {
        "flip": column(many, "flip") == 1.0,
        "jitter": column(many, "brightness") != 1.0,
        "grayscale": column(many, "grayscale") != 0.0,
        "blur": column(many, "blur_sigma") > 0.0,
        "solarize": column(many, "solarize") < 2.0,
    }
    for name, occurred in events.items():
        p = getattr(RECIPE, name)
        assert abs(occurred.mean() - p) < 4.0 * (p * (1.0 - p) / DRAWS) ** 0.5, name
    for name in ("contrast", "saturation"):
        np.testing.assert_array_equal(column(many, name) != 1.0, events["jitter"])
    np.testing.assert_array_equal(column(many, "hue") != 0.0, events["jitter"])
    # Events, factors and blur sigma of the views that are both jittered and blurred, where the draws are uniform.
    both = events["jitter"] & events["blur"]
    numbers = [events[name][both] for name in ("flip", "grayscale", "solarize")]
    numbers += [column(many, name)[both] for name in (*JITTER, "blur_sigma")]
    correlations = np.corrcoef(np.stack(numbers).astype(np.float64))
    assert np.abs(np.corrcoef(list(events.values())) - np.eye(5)).max() < 4.0 / DRAWS**0.5
    assert np.abs(correlations - np.eye(len(numbers))).max() < 4.0 / both.sum() ** 0.5


def test_the_order_is_a_uniform_permutation(many: NDArray) -> None:
    jittered = orders(many)[column(many, "brightness") != 1.0]
    counts = {order: int((jittered == order).all(1).sum()) for order in permutations(range(4))}
    assert sum(counts.values()) == len(jittered)
    assert min(counts.values()) > 0
    assert chisquare(list(counts.values())).pvalue > 0.01
    skipped = orders(many)[column(many, "brightness") == 1.0]
    assert (skipped == np.arange(4)).all()


def test_recipe_sets_all_fields() -> None:
    drawn = sample_photometrics(
        PhotometricRecipe(
            grayscale=1.0, grayscale_first=True, blur=1.0, blur_sigma=(1.5, 1.5), blur_kernel=5, solarize=1.0
        ),
        0,
        0,
        np.arange(7),
        1,
    )
    for name, value in {"grayscale": 2.0, "blur_sigma": 1.5, "blur_radius": 2.0, "solarize": 0.5}.items():
        assert (column(drawn, name) == value).all(), name


def test_parameters_do_not_depend_on_their_batch() -> None:
    indices = np.random.default_rng(0).permutation(101) + 2**32
    whole = sample_photometrics(RECIPE, 5, 6, indices, 2)
    order = np.random.default_rng(1).permutation(101)
    np.testing.assert_array_equal(sample_photometrics(RECIPE, 5, 6, indices[order], 2), whole[order])
    alone = sample_photometrics(RECIPE, 5, 6, indices[37:38], 5)
    np.testing.assert_array_equal(alone[0, :2], whole[37])


def test_all_parts_of_the_key_change_the_parameters() -> None:
    indices = np.arange(101)
    recipe = PhotometricRecipe(brightness=0.4)
    first = sample_photometrics(recipe, 1, 2, indices, 2)
    np.testing.assert_array_equal(sample_photometrics(recipe, 1, 2, indices, 2), first)
    changed_draws = {
        "seed": sample_photometrics(recipe, 2, 2, indices, 2),
        "high word of the seed": sample_photometrics(recipe, 2**32 + 1, 2, indices, 2),
        "epoch": sample_photometrics(recipe, 1, 3, indices, 2),
        "view": first[:, ::-1],
        "index": np.roll(first, 1, 0),
        "high word of the index": sample_photometrics(recipe, 1, 2, indices + 2**32, 2),
    }
    for name, changed in changed_draws.items():
        assert (changed != first).any(-1).mean() > 0.99, name


def test_tensors_in_tensors_out() -> None:
    drawn = sample_photometrics(RECIPE, 0, 0, torch.arange(5), 2)
    assert isinstance(drawn, torch.Tensor) and drawn.dtype == torch.float32
    np.testing.assert_array_equal(drawn.numpy(), sample_photometrics(RECIPE, 0, 0, np.arange(5), 2, impl="reference"))


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_empty_batch(impl: str) -> None:
    drawn = sample_photometrics(RECIPE, 0, 0, np.zeros(0, np.int64), 3, impl=impl)
    assert drawn.shape == (0, 3, len(PHOTOMETRIC_FIELDS)) and drawn.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("flip", "jitter", "grayscale", "blur", "solarize") for value in (-0.1, 1.1)),
        ("solarize_threshold", 1.5),
        ("flip", float("nan")),
        ("brightness", -0.1),
        ("contrast", -0.1),
        ("saturation", -0.1),
        ("hue", 0.6),
        ("hue", -0.1),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (2.0, 0.1)),
        ("blur_kernel", 22),
        ("blur_kernel", -1),
        ("brightness", float("nan")),
        ("contrast", float("nan")),
        ("saturation", float("nan")),
    ],
)
def test_recipe_errors(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must .*, got") as error:
        PhotometricRecipe(**{name: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("indices", "num_views", "impl", "message"),
    [
        (np.zeros((2, 1), np.int64), 1, None, r"indices must be \(B,\), got \(2, 1\)"),
        (np.arange(2), 0, None, r"num_views must be in \[1, 256\], got 0"),
        (np.arange(2), 257, None, r"num_views must be in \[1, 256\], got 257"),
        (np.arange(2), 1, "triton", "impl must be one of .*, got 'triton'"),
    ],
)
def test_errors(indices: NDArray, num_views: int, impl: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_photometrics(RECIPE, 0, 0, indices, num_views, impl=impl)
