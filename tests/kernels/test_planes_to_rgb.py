"""planes_to_rgb against its oracle, to the bit; tests/loaders/test_yuv420.py compares the oracle with libjpeg-turbo."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from triton_worker import interpreted

from saga_fast.kernels import planes_to_rgb
from saga_fast.kernels.planes_to_rgb import num_bytes, planes_to_rgb_image

NDArray = npt.NDArray[Any]
SIZES = np.array([(1, 1), (2, 1), (1, 2), (3, 4), (2, 5), (9, 4), (17, 33), (6, 36), (5, 35), (16, 68), (31, 97)])


def random_planes(sizes: NDArray, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).integers(0, 256, int(num_bytes(*sizes.T).sum())).astype(np.uint8)


def test_images_of_any_sizes() -> None:
    planes = random_planes(SIZES)
    expected = planes_to_rgb(planes, SIZES, impl="reference")
    assert expected.shape == (3 * SIZES.prod(1).sum(),)
    np.testing.assert_array_equal(planes_to_rgb(planes, SIZES), expected)
    tensor = torch.from_numpy(planes)
    for pixels in (planes_to_rgb(tensor, SIZES), interpreted("planes_to_rgb", tensor, SIZES, impl="triton")):
        assert isinstance(pixels, torch.Tensor)
        np.testing.assert_array_equal(pixels, expected)


def test_all_colours() -> None:
    """Every pair of Cb and Cr, at random brightness: three equal rows of colour each, which upsampling leaves alone."""
    blue, red = np.divmod(np.arange(256 * 256), 256)
    sizes = np.array([[6 * 256 * 256, 38]])
    colours = [np.repeat(colour, 3)[:, None].repeat(19, 1).astype(np.uint8).ravel() for colour in (blue, red)]
    planes = np.concatenate([random_planes(sizes)[: int(sizes.prod())], *colours])
    pixels = planes_to_rgb(planes, sizes).reshape(*sizes[0], 3)
    luma = planes[: int(sizes.prod())].reshape(*sizes[0]).astype(int)
    same = slice(2, None, 6)  # a row between two of its own colour
    b, r = (colour[:, None].astype(int) - 128 for colour in (blue, red))
    expected = [
        luma[same] + (91881 * r + 32768 >> 16),
        luma[same] + (-22554 * b - 46802 * r + 32768 >> 16),
        luma[same] + (116130 * b + 32768 >> 16),
    ]
    np.testing.assert_array_equal(pixels[same], np.stack(expected, -1).clip(0, 255))


@pytest.mark.parametrize("size", [(31, 45), (9, 120), (6, 131)])
def test_any_window_has_the_pixels_of_the_whole(size: tuple[int, int]) -> None:
    """At most one more column on either side is written."""
    planes = random_planes(np.array([size]))
    whole = planes_to_rgb(planes, np.array([size])).reshape(*size, 3)
    rng = np.random.default_rng(0)
    for _ in range(300):
        (top, bottom), (left, right) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in size)
        pixels = np.full((*size, 3), 7, np.uint8)
        planes_to_rgb_image(planes, pixels, top, bottom, left, right)
        np.testing.assert_array_equal(pixels[top:bottom, left:right], whole[top:bottom, left:right])
        pixels[top:bottom, max(left - 1, 0) : right + 1] = 7
        assert (pixels == 7).all()


def test_no_image() -> None:
    none, sizes = torch.zeros(0, dtype=torch.uint8), np.zeros((0, 2), np.int64)
    for impl in (None, "reference"):
        assert planes_to_rgb(none, sizes, impl=impl).shape == (0,)
    assert interpreted("planes_to_rgb", none, sizes, impl="triton").shape == (0,)


def test_refusals() -> None:
    planes, sizes = random_planes(SIZES), SIZES
    with pytest.raises(ValueError, match=f"planes of these sizes have {len(planes)} bytes, got {len(planes) - 1}"):
        planes_to_rgb(planes[1:], sizes)
    with pytest.raises(ValueError, match=r"planes must be uint8 \(n,\), got float32"):
        planes_to_rgb(planes.astype(np.float32), sizes)
    with pytest.raises(ValueError, match=r"sizes must be \(B, 2\), each at least 1"):
        planes_to_rgb(planes, np.array([[4, 0]]))
    with pytest.raises(ValueError, match=r"impl must be one of .* for arrays on the CPU, got 'triton'"):
        planes_to_rgb(planes, sizes, impl="triton")
