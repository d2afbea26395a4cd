"""augment against the oracle and torchvision's functional transforms with the same parameters."""

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image, ImageOps

from saga_fast.kernels import PHOTOMETRIC_FIELDS, PhotometricRecipe, augment, sample_photometrics

NDArray = npt.NDArray[Any]
IMPLS = ("numba", "reference")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLUR_SIGMA, SOLARIZE = PHOTOMETRIC_FIELDS.index("blur_sigma"), PHOTOMETRIC_FIELDS.index("solarize")
# Tolerance with blur, in units of [0, 1]: the kernel leaves out taps beyond 3.5 sigma, torchvision does not.
LEVEL = 1.0 / 255.0
# Without blur both are float32: 1 ulp below 1 is 6e-8, and a jitter with strong factors gives an error of some 50 ulp.
ROUNDING = 1e-5

RECIPES = {
    "moco v2": PhotometricRecipe(
        flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5
    ),
    "simclr": PhotometricRecipe(
        flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grayscale=0.2, blur=0.5
    ),
    "grayscale first": PhotometricRecipe(
        flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, grayscale=0.3, grayscale_first=True
    ),
    "solarize": PhotometricRecipe(
        flip=0.5, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, blur=0.3, solarize=0.5
    ),
}


def recipe_for(name: str, side: int) -> PhotometricRecipe:
    """Return the recipe with the largest blur kernel valid for views of this side, at most 23 px."""
    fields = {**vars(RECIPES[name]), "blur_kernel": min(23, 2 * side - 1)}
    return PhotometricRecipe(**fields)


def photographs(count: int, side: int, seed: int = 0) -> NDArray:
    """Return (count, side, side, 3) uint8 crops of a photograph at random scales, a quarter with noise."""
    rng = np.random.default_rng(seed)
    source = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    out = np.empty((count, side, side, 3), np.uint8)
    for view in out:
        step = int(rng.integers(1, 512 // side + 1) if side > 1 else 1)
        top, left = rng.integers(0, 512 - step * (side - 1), 2)
        view[:] = source[top::step, left::step][:side, :side]
    noise = rng.integers(0, 256, out[::4].shape, np.uint8)
    out[::4] = out[::4] // 2 + noise // 2
    return out


def row(**changes: float) -> NDArray:
    """Return neutral parameters (P,), updated with ``changes``; the default order is 0, 1, 2, 3."""
    values = dict.fromkeys(PHOTOMETRIC_FIELDS, 0.0) | {f"order_{i}": float(i) for i in range(4)}
    values |= {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "solarize": 2.0}
    assert set(changes) <= set(values)
    return np.array(list((values | changes).values()), np.float32)


def by_torchvision(view: NDArray, parameters: NDArray) -> tuple[NDArray, NDArray]:
    """Return torchvision's view (3, S, S) float32 in [0, 1] and the mask of comparable values.

    Solarize is discontinuous at its threshold, so values near it are not comparable.
    """
    p = dict(zip(PHOTOMETRIC_FIELDS, parameters.tolist(), strict=True))
    steps = (
        lambda x: F.adjust_brightness(x, p["brightness"]),
        lambda x: F.adjust_contrast(x, p["contrast"]),
        lambda x: F.adjust_saturation(x, p["saturation"]),
        lambda x: F.adjust_hue(x, p["hue"]),
    )
    image = F.to_dtype(torch.from_numpy(np.array(view)).permute(2, 0, 1), torch.float32, scale=True)
    if p["flip"]:
        image = F.horizontal_flip(image)
    if p["grayscale"] == 2.0:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    for i in range(4):
        image = steps[int(p[f"order_{i}"])](image)
    if p["grayscale"] == 1.0:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if p["blur_sigma"] > 0.0:
        image = F.gaussian_blur(image, [2 * int(p["blur_radius"]) + 1] * 2, [p["blur_sigma"]] * 2)
    certain = (image - p["solarize"]).abs() > LEVEL
    if p["solarize"] <= 1.0:
        image = F.solarize(image, p["solarize"])
    return image.numpy(), certain.numpy()


def in_unit_range(augmented: NDArray) -> NDArray:
    """Undo the normalisation, in float64."""
    return np.asarray(augmented * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1)))


def assert_matches_torchvision(views: NDArray, parameters: NDArray) -> None:
    """Compare all implementations with torchvision: views (N, S, S, 3), parameters (N, P)."""
    augmented = {impl: in_unit_range(augment(views[None], parameters[None], MEAN, STD, impl=impl)[0]) for impl in IMPLS}
    for n, (view, p) in enumerate(zip(views, parameters, strict=True)):
        values = dict(zip(PHOTOMETRIC_FIELDS, p.tolist(), strict=True))
        expected, certain = by_torchvision(view, p)
        assert certain.mean() > 0.8 or view.shape[0] == 1
        for impl, results in augmented.items():
            assert results[n].shape == expected.shape
            error = np.abs(results[n] - expected)[certain]
            assert error.max(initial=0.0) <= (LEVEL if values["blur_sigma"] else ROUNDING), (impl, values)


@pytest.mark.parametrize("side", [1, 5, 37, 64])
@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes(name: str, side: int) -> None:
    count = {1: 40, 5: 30, 37: 20, 64: 10}[side]
    recipe = recipe_for(name, side)
    parameters = sample_photometrics(recipe, 1, 0, np.arange(count), 1)[:, 0]
    used = dict(zip(PHOTOMETRIC_FIELDS, (parameters != row()).any(0), strict=True))
    for event in ("flip", "hue", "grayscale", "solarize"):  # the sample contains all augmentations of the recipe
        assert used[event] == (getattr(recipe, event) > 0.0)
    assert used["blur_sigma"] == (recipe.blur > 0.0)
    assert_matches_torchvision(photographs(count, side), parameters)


@pytest.mark.parametrize("name", list(RECIPES))
def test_numba_matches_reference(name: str) -> None:
    views = photographs(30, 23, seed=1).reshape(15, 2, 23, 23, 3)
    parameters = sample_photometrics(recipe_for(name, 23), 2, 0, np.arange(15), 2)
    augmented, oracle = (in_unit_range(augment(views, parameters, MEAN, STD, impl=impl)) for impl in IMPLS)
    assert augmented.shape == (15, 2, 3, 23, 23)
    error, threshold = np.abs(augmented - oracle), parameters[..., SOLARIZE, None, None, None].copy()
    parameters[..., SOLARIZE] = 2.0
    before = in_unit_range(augment(views, parameters, MEAN, STD, impl="reference"))
    tolerance = np.where(parameters[..., BLUR_SIGMA] > 0.0, LEVEL, ROUNDING)[..., None, None, None]
    certain = np.abs(before - threshold) > tolerance
    assert certain.mean() > 0.8
    assert (error <= tolerance)[certain].all()


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": 1.0},
        {"brightness": 0.0},
        {"brightness": 0.3},
        {"brightness": 1.8},
        {"contrast": 0.0},
        {"contrast": 0.3},
        {"contrast": 1.8},
        {"saturation": 0.0},
        {"saturation": 0.3},
        {"saturation": 1.8},
        {"hue": 0.1},
        {"hue": -0.2},
        {"hue": 0.5},
        {"hue": -0.5},
        {"grayscale": 1.0},
        {"grayscale": 2.0},
        {"blur_sigma": 0.3, "blur_radius": 11.0},
        {"blur_sigma": 1.0, "blur_radius": 1.0},
        {"blur_sigma": 2.0, "blur_radius": 11.0},
        {"blur_sigma": 5.0, "blur_radius": 22.0},
        {"solarize": 0.0},
        {"solarize": 0.5},
        {"solarize": 100 / 255},
    ],
    ids=str,
)
def test_single_steps(changes: dict[str, float]) -> None:
    views, parameters = photographs(3, 23, seed=2), np.stack([row(**changes)] * 3)
    assert_matches_torchvision(views, parameters)
    plain = augment(views[None], None, MEAN, STD)
    assert np.abs(augment(views[None], parameters[None], MEAN, STD) - plain).max() > 0.01


@pytest.mark.parametrize("impl", IMPLS)
def test_solarize_includes_its_threshold(impl: str) -> None:
    """Values >= threshold are inverted. The thresholds 0 and 1 are exact in float32."""
    views = np.array([0, 1, 254, 255], np.uint8).reshape(1, 4, 1, 1, 1).repeat(3, -1)
    for threshold, levels in ((1.0, [0, 1, 254, 0]), (0.0, [255, 254, 1, 0])):
        parameters = np.stack([row(solarize=threshold)] * 4)[None]
        augmented = augment(views, parameters, (0.0,) * 3, (1.0,) * 3, impl=impl)[0, :, 0, 0, 0]
        np.testing.assert_allclose(augmented, np.array(levels) / 255.0, rtol=0.0, atol=ROUNDING)


def test_all_jitter_orders() -> None:
    factors = {"brightness": 1.4, "contrast": 1.7, "saturation": 0.3, "hue": 0.15}
    orders = [{f"order_{i}": float(step) for i, step in enumerate(order)} for order in permutations(range(4))]
    parameters = np.stack([row(**factors, **order) for order in orders])
    views = np.broadcast_to(photographs(2, 9, seed=3)[1], (24, 9, 9, 3))
    assert_matches_torchvision(views, parameters)
    distinct = np.unique(augment(views[None], parameters[None], MEAN, STD)[0].round(3), axis=0)
    assert len(distinct) > 12


@pytest.mark.parametrize("hue", [0.5, -0.5, 1 / 3, -1 / 3, 1 / 6, -1 / 6, 0.01, -0.37])
def test_hue_of_special_colours(hue: float) -> None:
    """All triples of seven levels: black, white, greys, primaries, secondaries and equal channels."""
    levels = np.array([0, 1, 2, 127, 128, 254, 255], np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(343, 3)
    view = np.concatenate([colours, colours[:18]]).reshape(1, 19, 19, 3)
    assert_matches_torchvision(view, row(hue=hue)[None])
    gray = (view[0].min(-1) == view[0].max(-1))[..., None] & np.ones(3, bool)
    shifted = in_unit_range(augment(view[None], row(hue=hue)[None, None], MEAN, STD)[0, 0])
    np.testing.assert_allclose(shifted.transpose(1, 2, 0)[gray], view[0][gray] / 255.0, rtol=0.0, atol=ROUNDING)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("side", [1, 5, 37])
def test_none_photometrics_only_normalises(side: int, impl: str) -> None:
    views = photographs(6, side).reshape(3, 2, side, side, 3)
    images = F.to_dtype(torch.from_numpy(views).permute(0, 1, 4, 2, 3), torch.float32, scale=True)
    expected = F.normalize(images, list(MEAN), list(STD)).numpy()
    neutral = sample_photometrics(PhotometricRecipe(), 0, 0, np.arange(3), 2)
    for parameters in (None, neutral):
        plain = augment(views, parameters, MEAN, STD, impl=impl)
        assert plain.dtype == np.float32 and plain.flags.c_contiguous
        np.testing.assert_allclose(plain, expected, rtol=0.0, atol=ROUNDING)


@pytest.mark.parametrize("impl", IMPLS)
def test_channels_last(impl: str) -> None:
    """The result has the requested memory format and the values of the oracle."""
    views = torch.from_numpy(photographs(10, 13).reshape(5, 2, 13, 13, 3))
    parameters = torch.from_numpy(sample_photometrics(recipe_for("moco v2", 5), 3, 0, np.arange(5), 2))
    expected = augment(views, parameters, MEAN, STD, impl="reference")
    for channels_last in (False, True):
        augmented = augment(views, parameters, MEAN, STD, channels_last=channels_last, impl=impl)
        assert isinstance(augmented, torch.Tensor) and augmented.shape == (5, 2, 3, 13, 13)
        assert augmented.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) == channels_last
        assert augmented.is_contiguous() != channels_last
        torch.testing.assert_close(augmented, expected, rtol=0.0, atol=LEVEL / min(STD))


def test_a_view_does_not_depend_on_its_batch() -> None:
    views = photographs(14, 11).reshape(7, 2, 11, 11, 3)
    parameters = sample_photometrics(recipe_for("simclr", 11), 4, 0, np.arange(7), 2)
    whole = augment(views, parameters, MEAN, STD)
    np.testing.assert_array_equal(augment(views[::-1, ::-1], parameters[::-1, ::-1], MEAN, STD), whole[::-1, ::-1])
    np.testing.assert_array_equal(augment(views[3:4, 1:], parameters[3:4, 1:], MEAN, STD), whole[3:4, 1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_solarize_is_pillows_and_torchvisions(impl: str) -> None:
    """All 256 levels, with the threshold 128 that they apply to bytes: 0.5 lies between 127 and 128."""
    views = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 16, 16, 3)
    recipe = PhotometricRecipe(solarize=1.0)
    parameters = sample_photometrics(recipe, 0, 0, np.arange(1), 1)
    augmented = augment(views, parameters, (0.0,) * 3, (1.0,) * 3, impl=impl)
    pillow = np.asarray(ImageOps.solarize(Image.fromarray(views[0, 0]), threshold=128)).transpose(2, 0, 1)
    torchvision = F.solarize(torch.from_numpy(views[0, 0]).permute(2, 0, 1), 128)
    np.testing.assert_array_equal(pillow, torchvision.numpy())
    np.testing.assert_allclose(255.0 * augmented[0, 0], pillow, rtol=0.0, atol=1e-4)


def test_strided_views() -> None:
    """(N, 3, S, S) planes viewed as (N, S, S, 3)."""
    planes = np.ascontiguousarray(photographs(4, 9).transpose(0, 3, 1, 2))
    views = planes.transpose(0, 2, 3, 1)
    assert not views.flags.c_contiguous
    assert_matches_torchvision(views, np.stack([row(hue=0.2, contrast=0.6, flip=1.0)] * 4))


@pytest.mark.parametrize("impl", IMPLS)
def test_blur_wider_than_the_view_is_refused(impl: str) -> None:
    views = photographs(2, 5)[None]
    fits = np.stack([row(blur_sigma=1.0, blur_radius=4.0), row(blur_radius=99.0)])
    assert_matches_torchvision(views[0], fits)
    too_wide = np.stack([row(), row(blur_sigma=1.0, blur_radius=5.0)])
    with pytest.raises(ValueError, match="blur_radius must be less than the view side 5 px, got 5"):
        augment(views, too_wide[None], MEAN, STD, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str) -> None:
    views = np.zeros((0, 2, 5, 5, 3), np.uint8)
    assert augment(views, None, MEAN, STD, impl=impl).shape == (0, 2, 3, 5, 5)
    parameters = np.zeros((0, 2, len(PHOTOMETRIC_FIELDS)), np.float32)
    assert augment(views, parameters, MEAN, STD, impl=impl).shape == (0, 2, 3, 5, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": np.zeros((2, 1, 5, 5, 3), np.float32)}, r"views must be uint8 \(B, V, S, S, 3\), got float32"),
        ({"views": np.zeros((2, 5, 5, 3), np.uint8)}, r"got uint8 \(2, 5, 5, 3\)"),
        ({"views": np.zeros((2, 1, 5, 7, 3), np.uint8)}, r"got uint8 \(2, 1, 5, 7, 3\)"),
        ({"views": np.zeros((2, 1, 3, 5, 5), np.uint8)}, r"got uint8 \(2, 1, 3, 5, 5\)"),
        ({"photometrics": np.zeros((2, 2, 13), np.float32)}, r"photometrics must be \(2, 1, 13\), got \(2, 2, 13\)"),
        ({"photometrics": np.zeros((2, 1, 12), np.float32)}, r"photometrics must be \(2, 1, 13\)"),
        ({"mean": (0.5, 0.5)}, r"mean and std must be three numbers each, .* got \[0.5, 0.5\]"),
        ({"std": (0.5, 0.5, 0.0)}, r"std > 0, got .* and \[0.5, 0.5, 0.0\]"),
        ({"channels_last": True}, "channels_last=True needs tensors, got a NumPy array"),
        ({"impl": "triton"}, "impl must be one of .*, got 'triton'"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"views": np.zeros((2, 1, 5, 5, 3), np.uint8), "photometrics": None}
    with pytest.raises(ValueError, match=message):
        augment(**{"mean": MEAN, "std": STD, **valid, **changes})
