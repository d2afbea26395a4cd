"""crop_resize against Pillow, torch and the oracle."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from saga_fast.kernels import crop_resize
from saga_fast.kernels.crop_resize import crop_resize_image

NDArray = npt.NDArray[Any]
IMPLS = ("numba", "reference")
# [top, left, height, width] in an image of 131 x 97 px: whole image, odd, tall, wide, one pixel in each corner, one
# row, one column, and windows that touch the far borders.
HEIGHT, WIDTH = 131, 97
WINDOWS = np.array(
    [
        (0, 0, 131, 97),
        (3, 5, 37, 41),
        (10, 90, 111, 7),
        (120, 1, 5, 91),
        (0, 0, 1, 1),
        (0, 96, 1, 1),
        (130, 0, 1, 1),
        (130, 96, 1, 1),
        (64, 0, 1, 97),
        (0, 48, 131, 1),
        (99, 60, 32, 37),
        (1, 1, 129, 95),
    ],
    np.int32,
)
SIZES = (1, 5, 37, 64, 139)
# Error of float32 sums of values up to 255 (1 ulp is 1.5e-5) over up to 131 taps, twice; the errors mostly cancel.
ROUNDING = 2e-4


def images() -> dict[str, NDArray]:
    """Return images (HEIGHT, WIDTH, 3) uint8: photograph, detail, noise, black and white noise."""
    photograph = skimage.data.astronaut()  # type: ignore[no-untyped-call]
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return {
        "photograph": photograph[: 3 * HEIGHT : 3, 100 : 100 + 4 * WIDTH : 4],
        "detail": photograph[60 : 60 + HEIGHT, 180 : 180 + WIDTH],
        "noise": noise,
        "black and white": np.where(noise > 127, 255, 0).astype(np.uint8),
    }


@pytest.fixture(scope="module", params=list(images()))
def image(request: pytest.FixtureRequest) -> NDArray:
    return np.ascontiguousarray(images()[request.param])


def by_pillow(image: NDArray, windows: NDArray, size: int) -> NDArray:
    """Crop, then resize with Pillow: (V, size, size, 3) uint8."""
    picture = Image.fromarray(image)
    crops = [picture.crop((left, top, left + w, top + h)) for top, left, h, w in windows.tolist()]
    return np.stack([np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)) for crop in crops])


def by_torch(image: NDArray, windows: NDArray, size: int) -> NDArray:
    """Crop, then resize with torch's antialiased bilinear interpolation: (V, size, size, 3) float64."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    crops = [planes[..., top : top + h, left : left + w] for top, left, h, w in windows.tolist()]
    views = [F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False) for crop in crops]
    return np.asarray(torch.cat(views).permute(0, 2, 3, 1))


def level_difference(a: NDArray, b: NDArray) -> NDArray:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(np.int64) - b)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", SIZES)
def test_within_one_level_of_pillow(image: NDArray, size: int, impl: str) -> None:
    """Some pixels differ by one level: only Pillow rounds to 8 bits between the two passes."""
    difference = level_difference(crop_resize(image, WINDOWS, size, impl=impl), by_pillow(image, WINDOWS, size))
    assert difference.max() <= 1
    assert difference.mean() < 0.15


@pytest.mark.parametrize("size", SIZES)
def test_nearest_level_of_torch_float64(image: NDArray, size: int) -> None:
    """Both implementations round the exact result, so they are equal except near ties at x.5."""
    exact = by_torch(image, WINDOWS, size)
    views, oracle = (crop_resize(image, WINDOWS, size, impl=impl) for impl in IMPLS)
    for result in (views, oracle):
        assert np.abs(result - exact).max() <= 0.5 + ROUNDING
    no_tie = np.abs(exact % 1.0 - 0.5) > ROUNDING
    assert no_tie.mean() > 0.9
    np.testing.assert_array_equal(views[no_tie], oracle[no_tie])


@pytest.mark.parametrize("impl", IMPLS)
def test_random_windows(impl: str) -> None:
    image, rng = np.ascontiguousarray(images()["detail"]), np.random.default_rng(1)
    sides = rng.integers(1, (HEIGHT + 1, WIDTH + 1), (60, 2))
    windows = np.concatenate([rng.integers(0, (HEIGHT, WIDTH) - sides + 1), sides], 1)
    for size in (7, 32):
        difference = level_difference(crop_resize(image, windows, size, impl=impl), by_pillow(image, windows, size))
        assert difference.max() <= 1


@pytest.mark.parametrize("impl", IMPLS)
def test_window_of_the_view_size_is_copied(image: NDArray, impl: str) -> None:
    view = crop_resize(image, np.array([[17, 41, 37, 37]]), 37, impl=impl)
    np.testing.assert_array_equal(view[0], image[17:54, 41:78])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_constant_image_stays_constant(level: int, impl: str) -> None:
    """The weights sum to 1, so no level is lost and 255 does not wrap around."""
    image = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
    for size in SIZES:
        assert (crop_resize(image, WINDOWS, size, impl=impl) == level).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_pixels_outside_the_window_do_not_matter(impl: str) -> None:
    """A white window in a black image stays white up to its edges, at any scale."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[40:101, 30:43] = 255
    for size in SIZES:
        assert (crop_resize(image, np.array([[40, 30, 61, 13]]), size, impl=impl) == 255).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_an_image_of_one_pixel(impl: str) -> None:
    image = np.array([[[3, 141, 255]]], np.uint8)
    view = crop_resize(image, np.array([[0, 0, 1, 1]]), 5, impl=impl)
    np.testing.assert_array_equal(view, np.broadcast_to(image, (1, 5, 5, 3)))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_padded_batch(impl: str) -> None:
    """An image gives the same views in a batch and alone; the padding has no influence."""
    rng = np.random.default_rng(2)
    sizes = [(29, 53), (61, 17), (1, 1)]
    alone = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    windows = np.array([[(0, 0, h, w), (h // 3, w // 2, h - h // 3, w - w // 2)] for h, w in sizes])
    batch = rng.integers(0, 256, (3, 61, 53, 3), np.uint8)
    for padded, image in zip(batch, alone, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    views = crop_resize(batch, windows, 23, impl=impl)
    assert views.shape == (3, 2, 23, 23, 3)
    for n, image in enumerate(alone):
        assert level_difference(views[n], by_pillow(image, windows[n], 23)).max() <= 1
        np.testing.assert_array_equal(views[n], crop_resize(image, windows[n], 23, impl=impl))


def test_crop_resize_image_equals_the_op(image: NDArray) -> None:
    """The function for decoding threads gives the bytes of the public op, tested against Pillow above."""
    sides = np.array([37] * (len(WINDOWS) - 2) + [9, 50])
    views = np.empty(3 * (sides**2).sum(), np.uint8)
    crop_resize_image(image, WINDOWS, sides, views)
    parts = np.split(views, np.cumsum(3 * sides**2)[:-1])
    for part, window, side in zip(parts, WINDOWS, sides, strict=True):
        np.testing.assert_array_equal(part.reshape(side, side, 3), crop_resize(image, window[None], int(side))[0])


def test_shapes_follow_the_windows(image: NDArray) -> None:
    expected = by_pillow(image, WINDOWS, 9)
    for windows, shape in ((WINDOWS, (12,)), (WINDOWS[None], (1, 12)), (WINDOWS[:0], (0,))):
        views = crop_resize(image, windows, 9)
        assert views.shape == (*shape, 9, 9, 3)
        assert (level_difference(views.reshape(-1, 9, 9, 3), expected[: shape[-1]]) <= 1).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_images(impl: str) -> None:
    larger = np.random.default_rng(3).integers(0, 256, (3, 2 * WIDTH, HEIGHT + 2), np.uint8)
    image = larger.transpose(2, 1, 0)[1:-1, ::2]
    difference = level_difference(crop_resize(image, WINDOWS, 13, impl=impl), by_pillow(image, WINDOWS, 13))
    assert not image.flags.c_contiguous and difference.max() <= 1


def test_tensors_in_tensors_out(image: NDArray) -> None:
    views = crop_resize(torch.from_numpy(image), torch.from_numpy(WINDOWS), 37)
    assert isinstance(views, torch.Tensor)
    assert level_difference(views.numpy(), by_pillow(image, WINDOWS, 37)).max() <= 1


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "window",
    [
        [-1, 0, 5, 5],
        [0, -1, 5, 5],
        [0, 0, 0, 5],
        [0, 0, 5, -1],
        [127, 0, 5, 5],
        [0, 93, 5, 5],
        [0, 0, 132, 5],
        [2**31 - 1, 0, 2**31 - 1, 5],
    ],
    ids=str,
)
def test_windows_outside_the_image(window: list[int], impl: str) -> None:
    image, windows = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.array([[0, 0, 5, 5], window], np.int32)
    with pytest.raises(ValueError, match="is empty or extends beyond the image of 131 x 97 pixels") as error:
        crop_resize(image, windows, 7, impl=impl)
    assert str(window) in str(error.value)


@pytest.mark.parametrize("window", [[2**32, 0, 5, 5], [0, 0, 2**32 + 5, 5]], ids=str)
def test_windows_beyond_int32(window: list[int]) -> None:
    with pytest.raises(ValueError, match="extends beyond the image"):
        crop_resize(np.zeros((9, 9, 3), np.uint8), np.array([window]), 7)


@pytest.mark.parametrize(
    ("image", "windows", "size", "impl", "message"),
    [
        (np.zeros((9, 9, 3), np.float32), [[0, 0, 5, 5]], 7, None, r"image must be uint8 .*, got float32 \(9, 9, 3\)"),
        (np.zeros((9, 9, 3), np.int8), [[0, 0, 5, 5]], 7, None, "image must be uint8 .*, got int8"),
        (np.zeros((9, 9, 4), np.uint8), [[0, 0, 5, 5]], 7, None, r"got uint8 \(9, 9, 4\)"),
        (np.zeros((9, 9), np.uint8), [[0, 0, 5, 5]], 7, None, r"got uint8 \(9, 9\)"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 5]], 7, None, r"windows must be \(B, V, 4\) with B 1, got \(1, 3\)"),
        (np.zeros((9, 9, 3), np.uint8), [0, 0, 5, 5], 7, None, r"got \(4,\)"),
        (np.zeros((2, 9, 9, 3), np.uint8), [[[0, 0, 5, 5]]], 7, None, r"with B 2, got \(1, 1, 4\)"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 5, 5]], 0, None, "size must be at least 1, got 0"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 5, 5]], 7, "pillow", "impl must be one of .*, got 'pillow'"),
    ],
)
def test_errors(image: NDArray, windows: list[Any], size: int, impl: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crop_resize(image, np.array(windows), size, impl=impl)
