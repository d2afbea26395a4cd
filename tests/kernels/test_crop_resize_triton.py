"""crop_resize in Triton's interpreter against the oracle; unwritten outputs are 255.

Both round to the nearest level; float32 may round a value near a tie the other way.
"""

from typing import Any

import numpy as np
import pytest
import torch
from triton_worker import interpreted

from saga_fast.kernels import crop_resize
from saga_fast.kernels.crop_resize import ImageTable

# Images, views, height, width, side of the views.
SHAPES = [
    (1, 1, 1, 1, 3),  # one pixel
    (3, 1, 5, 7, 13),  # enlarged
    (2, 2, 40, 53, 37),
    (1, 1, 30, 130, 65),  # two tiles a row, one axis enlarged and the other reduced
    (1, 3, 61, 45, 7),  # many taps
]


def random_windows(rng: np.random.Generator, batch: int, views: int, height: int, width: int) -> torch.Tensor:
    """Return (batch, views, 4) int32 windows inside the image; the first view has the whole image."""
    h, w = rng.integers(1, height + 1, (batch, views)), rng.integers(1, width + 1, (batch, views))
    h[:, 0], w[:, 0] = height, width
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return torch.from_numpy(np.stack([top, left, h, w], -1).astype(np.int32))


def images(rng: np.random.Generator, batch: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, (batch, height, width, 3), np.uint8))


def assert_matches_reference(views: Any, oracle: torch.Tensor) -> None:
    assert views.dtype == torch.uint8
    assert views.shape == oracle.shape
    difference = (views.int() - oracle.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 0.01


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_flips(shape: tuple[int, int, int, int, int]) -> None:
    batch, num_views, height, width, size = shape
    rng = np.random.default_rng(sum(shape))
    image, windows = images(rng, batch, height, width), random_windows(rng, batch, num_views, height, width)
    oracle = crop_resize(image, windows, size, impl="reference")
    flip = torch.from_numpy(rng.integers(0, 2, (batch, num_views)).astype(np.bool_))
    flip[0, 0] = True
    mirrored = torch.where(flip[:, :, None, None, None], oracle.flip(3), oracle)
    assert_matches_reference(interpreted("crop_resize", image, windows, size, flip=flip, impl="triton"), mirrored)
    for impl in ("numba", "reference"):
        assert_matches_reference(crop_resize(image, windows, size, flip=flip, impl=impl), mirrored)


def test_one_image() -> None:
    rng = np.random.default_rng(0)
    image, windows = images(rng, 1, 20, 31)[0], random_windows(rng, 1, 2, 20, 31)[0]
    flip = torch.tensor([False, True])
    oracle = crop_resize(image, windows, 9, flip=flip, impl="reference")
    assert oracle.shape == (2, 9, 9, 3)
    assert_matches_reference(interpreted("crop_resize", image, windows, 9, flip=flip, impl="triton"), oracle)


def test_window_of_the_view_size_is_copied() -> None:
    image = images(np.random.default_rng(1), 1, 45, 50)
    view = interpreted("crop_resize", image, torch.tensor([[[3, 5, 37, 37]]]), 37, impl="triton")
    assert torch.equal(view[0, 0], image[0, 3:40, 5:42])


def test_pixels_outside_the_window_do_not_matter() -> None:
    image = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    image[:, 10:21, 5:18] = 255
    view = interpreted("crop_resize", image, torch.tensor([[[10, 5, 11, 13]]]), 17, impl="triton")
    assert (view == 255).all()


def test_strided_images() -> None:
    rng = np.random.default_rng(2)
    image, windows = images(rng, 2, 30, 40)[:, ::2, 1::2], random_windows(rng, 2, 1, 15, 20)
    oracle = crop_resize(image, windows, 11, impl="reference")
    assert_matches_reference(interpreted("crop_resize", image, windows, 11, impl="triton"), oracle)


SIZES = [(5, 130), (9, 11), (37, 37), (1, 1), (60, 45)]


@pytest.mark.parametrize("planar", [False, True, None], ids=["packed", "planar", "mixed"])
def test_images_of_any_sizes(planar: bool | None) -> None:
    """As nvJPEG returns them: each in memory of its own, and with its channels apart."""
    rng = np.random.default_rng(4)
    stored = [images(rng, 1, *size)[0] for size in SIZES]
    windows = torch.cat([random_windows(rng, 1, 2, *size) for size in SIZES])
    apart = [image.permute(2, 0, 1).contiguous().permute(1, 2, 0) for image in stored]
    given = [apart[n] if (planar is None and n % 2) or planar else stored[n] for n in range(len(SIZES))]
    each = zip(stored, windows, strict=True)
    oracle = torch.cat([crop_resize(image[None], own[None], 13, impl="reference") for image, own in each])
    flip = torch.from_numpy(rng.integers(0, 2, (len(SIZES), 2)).astype(np.bool_))
    mirrored = torch.where(flip[:, :, None, None, None], oracle.flip(3), oracle)
    assert_matches_reference(interpreted("crop_resize", given, windows, 13, flip=flip, impl="triton"), mirrored)
    for impl in ("numba", "reference"):
        assert_matches_reference(crop_resize(given, windows, 13, flip=flip, impl=impl), mirrored)
    assert_matches_reference(crop_resize(given, windows, 13), oracle)


def test_a_table_of_the_images_lies_where_they_do() -> None:
    stored = [torch.zeros(5, 7, 3, dtype=torch.uint8), torch.zeros(3, 4, 6, dtype=torch.uint8)[:, :, ::2]]
    table = ImageTable.of(stored)
    assert (len(table), table.packed, table.sizes.tolist()) == (2, False, [[5, 7], [3, 4]])
    assert table.rows.tolist() == [[stored[0].data_ptr(), 5, 7, 21, 3, 1], [stored[1].data_ptr(), 3, 4, 24, 6, 2]]
    batch = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    expected = [[image.data_ptr(), 4, 5, 15, 3, 1] for image in batch]
    assert ImageTable.of(batch).packed and ImageTable.of(batch).rows.tolist() == expected
    with pytest.raises(ValueError, match="an ImageTable is read by impl 'triton' alone"):
        crop_resize(table, np.zeros((2, 1, 4), np.int32) + 1, 5)
    with pytest.raises(ValueError, match=r"impl must be one of .* for arrays on the CPU, got 'triton'"):
        crop_resize(stored, np.zeros((2, 1, 4), np.int32) + 1, 5, impl="triton")
    with pytest.raises(ValueError, match=r"window \[0, 0, 4, 1\] is empty or extends beyond the image of 3 x 4 pixels"):
        crop_resize(stored, np.array([[[0, 0, 4, 1]], [[0, 0, 4, 1]]]), 5)
    with pytest.raises(ValueError, match=r"image must be uint8 \(H, W, 3\), got torch.uint8 \(1, 4, 5, 3\)"):
        crop_resize([batch[:1]], np.zeros((1, 1, 4), np.int32), 5)


def test_windows_beyond_the_image_are_clipped() -> None:
    """Windows are not checked on a GPU, so the kernel must not read outside the image."""
    image = images(np.random.default_rng(3), 1, 20, 31)
    windows = torch.tensor([[[-3, 25, 10, 90], [18, -7, 9, 0], [500, 500, 5, 5]]], dtype=torch.int32)
    clipped = torch.tensor([[[0, 25, 10, 6], [18, 0, 2, 1], [19, 30, 1, 1]]], dtype=torch.int32)
    module = "saga_fast.kernels.crop_resize"
    views = interpreted("_lazy_triton", image, windows, 9, None, module=module)
    assert_matches_reference(views, crop_resize(image, clipped, 9, impl="reference"))


def test_empty_batch() -> None:
    empty = torch.zeros(0, 5, 5, 3, dtype=torch.uint8)
    views = interpreted("crop_resize", empty, torch.zeros(0, 2, 4, dtype=torch.int32), 7, impl="triton")
    assert views.shape == (0, 2, 7, 7, 3)


def test_errors() -> None:
    image, windows = np.zeros((9, 9, 3), np.uint8), np.array([[0, 0, 5, 5]])
    with pytest.raises(ValueError, match=r"flip must be \(1,\), got \(2,\)"):
        crop_resize(image, windows, 7, flip=np.zeros(2, np.bool_))
    with pytest.raises(ValueError, match=r"impl must be one of .* for arrays on the CPU, got 'triton'"):
        crop_resize(image, windows, 7, impl="triton")
