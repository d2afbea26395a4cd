"""rgb_to_lab and rgb_to_ydbdr against scikit-image in float64.

L, a and b reach 100 and float32 has 24 bits: an error of 100 * 2^-24 = 6e-6 in each of some ten operations. a and b
multiply the error of f by 500. 2e-4 is 4e-6 of the channels' standard deviations.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage.color import rgb2lab, rgb2ydbdr

from saga_fast.kernels import rgb_to_lab, rgb_to_ydbdr

IMPLS = ("torch", "reference")
TOLERANCE = 2e-4
Op = Callable[..., Any]
OPS: list[tuple[Op, Op]] = [(rgb_to_lab, rgb2lab), (rgb_to_ydbdr, rgb2ydbdr)]


def colors() -> npt.NDArray[np.float32]:
    """Return (3, 3, 21, 17): a grid of the RGB cube, dark colours near both thresholds, random colours."""
    grid = np.stack(np.meshgrid(*[np.linspace(0.0, 1.0, 7)] * 3), -1).reshape(-1, 3)
    thresholds = np.array([0.0, 0.04045, np.nextafter(0.04045, 1), 0.0393, 0.0395, 0.008, 0.0919, 0.0921])
    dark = np.stack(np.meshgrid(*[thresholds] * 3), -1).reshape(-1, 3)
    rest = np.random.default_rng(0).random((3 * 21 * 17 - len(grid) - len(dark), 3))
    return np.concatenate([grid, dark, rest]).astype(np.float32).reshape(3, 21, 17, 3).transpose(0, 3, 1, 2)


def by_skimage(convert: Op, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    converted: npt.NDArray[np.float64] = convert(images.astype(np.float64).transpose(0, 2, 3, 1))
    return converted.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("op", "convert"), OPS, ids=["lab", "ydbdr"])
def test_equal_to_scikit_image(op: Op, convert: Op, impl: str) -> None:
    images = colors()
    converted = op(images, impl=impl)
    assert (converted.shape, converted.dtype) == (images.shape, np.float32)
    np.testing.assert_allclose(converted, by_skimage(convert, images), rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("op", "convert"), OPS, ids=["lab", "ydbdr"])
def test_mean_and_std(op: Op, convert: Op, impl: str) -> None:
    mean, std = (50.0, 6.025, -6.6895), (50.0, 92.208, 101.1675)
    expected = (by_skimage(convert, colors()) - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(op(colors(), mean, std, impl=impl), expected, rtol=0.0, atol=TOLERANCE / 50)


def test_known_colours() -> None:
    """White, black and the three primaries (D65, 2 degrees; published to 2 decimals)."""
    rgb = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    expected = np.array(
        [[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    )
    np.testing.assert_allclose(rgb_to_lab(rgb[:, :, None, None])[:, :, 0, 0], expected, atol=0.02)


@pytest.mark.parametrize("op", [rgb_to_lab, rgb_to_ydbdr])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_any_strides(op: Op, layout: str) -> None:
    images = torch.from_numpy(colors())
    strided = images.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        strided = images.repeat(1, 1, 2, 2)[:, :, :21, ::2].clone()[..., :17]
        images = strided.contiguous()
    before = strided.clone()
    converted = op(strided)
    assert converted.is_contiguous()
    assert torch.equal(converted, op(images))
    assert torch.equal(strided, before)


@pytest.mark.parametrize("op", [rgb_to_lab, rgb_to_ydbdr])
def test_autocast_and_gradients_have_no_effect(op: Op) -> None:
    images = torch.from_numpy(colors())
    with torch.autocast("cpu", torch.bfloat16):
        converted = op(images.clone().requires_grad_())
    assert not converted.requires_grad
    assert torch.equal(converted, op(images))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("op", [rgb_to_lab, rgb_to_ydbdr])
def test_empty(op: Op, impl: str) -> None:
    assert op(torch.zeros(0, 3, 5, 7), impl=impl).shape == (0, 3, 5, 7)


@pytest.mark.parametrize("op", [rgb_to_lab, rgb_to_ydbdr])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4, 5, 5),), r"images must be float32 \(B, 3, H, W\), got torch.float32 \(2, 4, 5, 5\)"),
        ((torch.zeros(3, 5, 5),), r"got torch.float32 \(3, 5, 5\)"),
        ((torch.zeros(2, 3, 5, 5, dtype=torch.float64),), "got torch.float64"),
        ((torch.zeros(2, 3, 5, 5), (0.0, 0.0), (1.0, 1.0, 1.0)), "three numbers"),
        ((torch.zeros(2, 3, 5, 5), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)), "std > 0"),
    ],
)
def test_errors(op: Op, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op(*arguments)


def test_explicit_impl_never_falls_back() -> None:
    with pytest.raises(ValueError, match=r"impl must be one of .*, got 'triton'"):
        rgb_to_lab(torch.zeros(1, 3, 2, 2), impl="triton")
