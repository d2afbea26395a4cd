"""augment in Triton's interpreter against the oracle; unwritten outputs are NaN."""

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from triton_worker import interpreted

from saga_fast.kernels import PHOTOMETRIC_FIELDS, PhotometricRecipe, augment, sample_photometrics

NDArray = npt.NDArray[Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Tolerances in units of [0, 1]. A float32 jitter with strong factors gives an error of some 50 ulp of 1. The blur
# rounds to float16 planes (twice 2^-12, half a unit in the last place) and leaves out taps beyond 3.5 sigma (0.05 % of
# the weight).
ROUNDING, BLURRED = 1e-5, 1.0 / 255.0
PLAIN = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "solarize": 2.0} | {f"order_{i}": i for i in range(4)}
# Relative error of the result's dtype. The interpreter truncates to bfloat16; a GPU rounds, with half the error.
PRECISION = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


def random_views(batch: int, num_views: int, side: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (batch, num_views, side, side, 3), np.uint8))


def rows(*changes: dict[str, float]) -> torch.Tensor:
    """Return (1, V, P): neutral parameters per view, updated with that view's ``changes``."""
    zeros = dict.fromkeys(PHOTOMETRIC_FIELDS, 0.0)
    return torch.tensor([[list((zeros | PLAIN | change).values()) for change in changes]])


def assert_matches_reference(views: torch.Tensor, photometrics: torch.Tensor | None, **options: Any) -> None:
    """Compare with the oracle, except near the threshold of solarize."""
    result = interpreted("augment", views, photometrics, MEAN, STD, impl="triton", **options)
    oracle = augment(views, photometrics, MEAN, STD, impl="reference", **options | {"dtype": torch.float32})
    assert result.dtype == options.get("dtype", torch.float32)
    last = torch.channels_last if options.get("channels_last") else torch.contiguous_format
    assert result.flatten(0, 1).is_contiguous(memory_format=last)
    shape = (*views.shape[:2], 1, 1, 1)
    tolerance, threshold = torch.full(shape, ROUNDING), torch.zeros(shape)
    if photometrics is not None:
        column = {name: photometrics[..., i].view(shape) for i, name in enumerate(PHOTOMETRIC_FIELDS)}
        tolerance[column["blur_sigma"] > 0.0] = BLURRED
        threshold = column["solarize"]
    std, mean = (torch.tensor(x).view(3, 1, 1) for x in (STD, MEAN))
    value = oracle * std + mean
    # Solarize maps v >= t to 1 - v: both sides of the discontinuity are within the tolerance of t or of 1 - t.
    near_threshold = ((value - threshold).abs() <= tolerance) | ((value - 1.0 + threshold).abs() <= tolerance)
    tolerance = (tolerance + ROUNDING) / std + PRECISION[result.dtype] * oracle.abs()
    assert ((result.float() - oracle).abs() <= tolerance)[~near_threshold].all()
    assert near_threshold.float().mean() < 0.05


RECIPES = {
    "moco v2": PhotometricRecipe(
        flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5
    ),
    "grayscale first": PhotometricRecipe(
        flip=0.5,
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.5,
        grayscale=0.5,
        grayscale_first=True,
        solarize=0.5,
    ),
}


@pytest.mark.parametrize("side", [1, 5, 37])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, side: int) -> None:
    recipe = PhotometricRecipe(**{**vars(RECIPES[name]), "blur_kernel": min(23, 2 * side - 1)})
    photometrics = sample_photometrics(recipe, 0, side, torch.arange(4), 2)
    assert_matches_reference(random_views(4, 2, side), photometrics)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_formats(dtype: torch.dtype, last: bool) -> None:
    changes = rows({"contrast": 1.3}, {"blur_sigma": 1.1, "blur_radius": 4.0}, {"solarize": 0.5})
    assert_matches_reference(random_views(1, 3, 17), changes, dtype=dtype, channels_last=last)
    assert_matches_reference(random_views(2, 1, 17), None, dtype=dtype, channels_last=last)


def test_all_jitter_orders() -> None:
    factors = {"brightness": 1.4, "contrast": 0.5, "saturation": 1.6, "hue": 0.3}
    orders = [dict(zip([f"order_{i}" for i in range(4)], o, strict=True)) for o in permutations(range(4))]
    assert_matches_reference(random_views(1, 24, 5), rows(*(factors | order for order in orders)))
    # Contrast after greyscale pivots on the mean of the grey image.
    assert_matches_reference(random_views(1, 1, 5), rows(factors | {"grayscale": 2.0}))


def test_single_steps() -> None:
    steps = [
        {},
        {"flip": 1.0},
        {"brightness": 0.0},
        {"contrast": 0.0},
        {"saturation": 0.0},
        {"hue": 0.5},
        {"hue": -0.5},
        {"grayscale": 1.0},
        {"grayscale": 2.0, "saturation": 1.9},
        {"solarize": 0.0},
        {"solarize": 1.0},
        {"flip": 1.0, "contrast": 1.7, "blur_sigma": 0.1, "blur_radius": 11.0},
        {"blur_sigma": 2.0, "blur_radius": 11.0},
        {"blur_sigma": 9.0, "blur_radius": 12.0},
    ]
    assert_matches_reference(random_views(1, len(steps), 13), rows(*steps))


@pytest.mark.parametrize("hue", [0.0, 1 / 6, 0.37, -0.21])
def test_hue_of_special_colours(hue: float) -> None:
    """Greys, primaries and colours with two equal channels."""
    levels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels).view(1, 1, 8, 8, 3)
    assert_matches_reference(colours, rows({"hue": hue}))


def test_the_mean_of_many_tiles() -> None:
    """Contrast 0 leaves only the mean; 97 x 97 pixels are five tiles of pass 1."""
    views = random_views(1, 1, 97)
    views[..., :60, :, :] //= 4
    assert_matches_reference(views, rows({"contrast": 0.0}))


def test_a_view_does_not_depend_on_its_batch() -> None:
    photometrics = sample_photometrics(RECIPES["moco v2"], 0, 0, torch.arange(6), 1)
    views = random_views(6, 1, 24)
    together = interpreted("augment", views, photometrics, MEAN, STD, impl="triton")
    alone = interpreted("augment", views[4:5], photometrics[4:5], MEAN, STD, impl="triton")
    assert torch.equal(together[4:5], alone)


def test_strided_views() -> None:
    assert_matches_reference(random_views(2, 3, 34)[:, ::2, ::2, 1::2], rows({"contrast": 1.2}, {}).expand(2, 2, -1))


def test_blur_wider_than_the_view_reads_only_the_view() -> None:
    """It is not checked on a GPU. The result stays in the view's range, so a constant view stays constant."""
    views, wide = random_views(1, 1, 5), rows({"blur_sigma": 9.0, "blur_radius": 30.0})
    with pytest.raises(ValueError, match="blur_radius must be less than the view side 5 px, got 30"):
        interpreted("augment", views, wide, MEAN, STD, impl="triton")
    module = "saga_fast.kernels.augment._triton"
    for view in (views, torch.full_like(views, 51)):
        arguments = (view, wide, (0.0,) * 3, (1.0,) * 3, False, torch.float32)
        result = interpreted("augment_triton", *arguments, module=module)
        assert (result >= view.min() / 255 - BLURRED).all()
        assert (result <= view.max() / 255 + BLURRED).all()


def test_empty_batch() -> None:
    views, photometrics = random_views(0, 2, 5), torch.zeros(0, 2, len(PHOTOMETRIC_FIELDS))
    assert interpreted("augment", views, photometrics, MEAN, STD, impl="triton").shape == (0, 2, 3, 5, 5)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_dtype_on_the_cpu(impl: str) -> None:
    views, photometrics = random_views(2, 1, 9), rows({"contrast": 1.4}).expand(2, 1, -1)
    for last in (False, True):
        full = augment(views, photometrics, MEAN, STD, channels_last=last, impl=impl)
        half = augment(views, photometrics, MEAN, STD, channels_last=last, dtype=torch.bfloat16, impl=impl)
        assert half.stride() == full.stride()
        assert torch.equal(half, full.bfloat16())


def test_errors() -> None:
    views = random_views(1, 1, 5)
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got torch\.float64"):
        augment(views, None, MEAN, STD, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32 for a NumPy array, got torch\.float16"):
        augment(views.numpy(), None, MEAN, STD, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"impl must be one of .* for arrays on the CPU, got 'triton'"):
        augment(views, None, MEAN, STD, impl="triton")
