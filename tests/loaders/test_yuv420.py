"""4:2:0 planes become the pixels that libjpeg makes of the JPEG they are from, in any window."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from test_ffcv_decoder import photograph

from saga_fast.loaders.decode import DecodeError
from saga_fast.loaders.engines import require_engine

NDArray = npt.NDArray[Any]
SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (2, 5), (9, 4), (17, 33), (16, 48), (33, 16), (131, 77), (64, 65)]


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    require_engine("ffcv")


def saturated(height: int, width: int) -> NDArray:
    """Colours of 0 and 255 only, whose blends leave the range of a byte."""
    return np.random.default_rng(width).integers(0, 2, (height, width, 3), np.uint8) * 255


@pytest.mark.parametrize("make", [photograph, saturated])
@pytest.mark.parametrize("size", SIZES)
def test_planes_of_a_jpeg_are_its_pixels(size: tuple[int, int], make: Any) -> None:
    from saga_fast.loaders.ffcv.decoder import pixels_of_planes
    from saga_fast.loaders.ffcv.yuv420 import num_bytes, planes_of_jpeg

    data = simplejpeg.encode_jpeg(make(*size), 90, "RGB", "420")
    planes = planes_of_jpeg(data, *size)
    assert len(planes) == num_bytes(*size)
    np.testing.assert_array_equal(pixels_of_planes(planes, *size), simplejpeg.decode_jpeg(data, "RGB"))


@pytest.mark.parametrize("size", SIZES)
def test_planes_of_pixels_are_those_of_a_jpeg_without_loss(size: tuple[int, int]) -> None:
    # Quality 100 still rounds after the DCT: a level or two of brightness and colour.
    from saga_fast.loaders.ffcv.yuv420 import planes_of_jpeg, planes_of_pixels

    image = photograph(*size)
    ours = np.frombuffer(planes_of_pixels(image), np.uint8).astype(int)
    data = simplejpeg.encode_jpeg(image, 100, "RGB", "420")
    assert np.abs(ours - np.frombuffer(planes_of_jpeg(data, *size), np.uint8)).max() <= 2
    grey = np.repeat(image[:, :, :1], 3, 2)
    ours = np.frombuffer(planes_of_pixels(grey), np.uint8)
    np.testing.assert_array_equal(ours[: grey[:, :, 0].size], grey[:, :, 0].ravel())
    assert (ours[grey[:, :, 0].size :] == 128).all()


def test_any_window_has_the_pixels_of_the_whole() -> None:
    from saga_fast.loaders.ffcv.decoder import pixels_of_planes
    from saga_fast.loaders.ffcv.yuv420 import planes_of_jpeg, planes_to_rgb

    planes = planes_of_jpeg(simplejpeg.encode_jpeg(photograph(31, 45), 85, "RGB", "420"), 31, 45)
    whole = pixels_of_planes(planes, 31, 45)
    rng = np.random.default_rng(0)
    for _ in range(300):
        (top, bottom), (left, right) = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (31, 45))
        pixels = np.full((31, 45, 3), 7, np.uint8)
        planes_to_rgb(np.frombuffer(planes, np.uint8), pixels, top, bottom, left, right)
        inside = np.zeros((31, 45), np.bool_)
        inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(pixels[inside], whole[inside])
        assert (pixels[~inside] == 7).all()


def test_a_damaged_jpeg_has_no_planes() -> None:
    from saga_fast.loaders.ffcv.yuv420 import planes_of_jpeg

    data = simplejpeg.encode_jpeg(photograph(131, 77), 85, "RGB", "420")
    with pytest.raises(DecodeError, match="damaged"):
        planes_of_jpeg(data[: len(data) // 3], 131, 77)
