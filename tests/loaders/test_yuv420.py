"""4:2:0 planes become the pixels that libjpeg makes of the JPEG that they are from."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from test_ffcv_decoder import photograph

from saga_fast.kernels import planes_to_rgb
from saga_fast.kernels.planes_to_rgb import num_bytes
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
    from saga_fast.loaders.ffcv.yuv420 import planes_of_jpeg

    data = simplejpeg.encode_jpeg(make(*size), 90, "RGB", "420")
    planes = planes_of_jpeg(data, *size)
    assert len(planes) == num_bytes(*size)
    pixels = simplejpeg.decode_jpeg(data, "RGB").ravel()
    for impl in ("numba", "reference"):
        np.testing.assert_array_equal(
            planes_to_rgb(np.frombuffer(planes, np.uint8), np.array([size]), impl=impl), pixels
        )


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


def test_a_damaged_jpeg_has_no_planes() -> None:
    from saga_fast.loaders.ffcv.yuv420 import planes_of_jpeg

    data = simplejpeg.encode_jpeg(photograph(131, 77), 85, "RGB", "420")
    with pytest.raises(DecodeError, match="damaged"):
        planes_of_jpeg(data[: len(data) // 3], 131, 77)
