"""crop_augment against crop_resize and augment run one after the other, on the CPU and in Triton."""

from typing import Any

import numpy as np
import pytest
import torch
from triton_worker import interpreted

from saga_fast.kernels import (
    PHOTOMETRIC_FIELDS,
    PhotometricRecipe,
    augment,
    crop_augment,
    crop_resize,
    sample_photometrics,
    sample_windows,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 19
RECIPE = PhotometricRecipe(
    flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0.5, blur_kernel=7
)


def batch(count: int, num_views: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a padded batch of images of at most 30 x 41 px, windows inside them, and photometrics."""
    rng = np.random.default_rng(count)
    images = torch.from_numpy(rng.integers(0, 256, (count, 30, 41, 3), np.uint8))
    sizes = torch.from_numpy(np.stack([rng.integers(3, 31, count), rng.integers(3, 42, count)], 1))
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, 4)
    key: dict[str, Any] = {"seed": 0, "epoch": 0, "indices": torch.arange(count), "num_views": num_views}
    return images, sample_windows(boxes, sizes, **key), sample_photometrics(RECIPE, 0, 0, key["indices"], num_views)


@pytest.mark.parametrize("impl", ["numba", "reference"])
def test_cpu_equals_both_ops(impl: str) -> None:
    images, windows, photometrics = batch(3)
    views = crop_resize(images, windows, SIDE, impl=impl)
    formats: list[dict[str, Any]] = [{}, {"channels_last": True, "dtype": torch.bfloat16}]
    for options in formats:
        result = crop_augment(images, windows, photometrics, SIDE, MEAN, STD, impl=impl, **options)
        expected = augment(views, photometrics, MEAN, STD, impl=impl, **options)
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("side", [3, 5, 37])
def test_triton(side: int) -> None:
    images, windows, photometrics = batch(3)
    if side < 4:
        photometrics[..., PHOTOMETRIC_FIELDS.index("blur_sigma")] = 0.0
    views = interpreted("crop_resize", images, windows, side, impl="triton")
    result = interpreted("crop_augment", images, windows, photometrics, side, MEAN, STD, impl="triton")
    expected = augment(views, photometrics, MEAN, STD, impl="reference")
    torch.testing.assert_close(result, expected, rtol=0.0, atol=1.0 / 255.0 / min(STD))
    sharp = photometrics[..., PHOTOMETRIC_FIELDS.index("blur_sigma")] == 0.0
    torch.testing.assert_close(result[sharp], expected[sharp], rtol=0.0, atol=1e-4)


def test_triton_only_normalises() -> None:
    images, windows, _ = batch(2)
    options: dict[str, Any] = {"channels_last": True, "dtype": torch.float16, "impl": "triton"}
    result = interpreted("crop_augment", images, windows, None, SIDE, MEAN, STD, **options)
    views = interpreted("crop_resize", images, windows, SIDE, impl="triton")
    expected = augment(views, None, MEAN, STD, channels_last=True, dtype=torch.float16, impl="reference")
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, rtol=2.0**-10, atol=1e-5)


def test_arrays_in_arrays_out() -> None:
    images, windows, photometrics = (x.numpy() for x in batch(2))
    result = crop_augment(images, windows, photometrics, SIDE, MEAN, STD)
    assert isinstance(result, np.ndarray)
    assert result.shape == (2, 2, 3, SIDE, SIDE)
    tensors = crop_augment(torch.from_numpy(images), windows, photometrics, SIDE, MEAN, STD)
    np.testing.assert_array_equal(tensors.numpy(), result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 9, 9, 3), np.float32)}, "image must be uint8 .*, got float32"),
        ({"windows": np.zeros((1, 2, 4), np.int32)}, r"windows must be \(B, V, 4\) with B 2"),
        ({"windows": np.zeros((2, 4), np.int32)}, r"images must be \(B, Hmax, Wmax, 3\) and .*, got .* and \(2, 4\)"),
        ({"windows": np.full((2, 2, 4), 8)}, r"window \[8, 8, 8, 8\] is empty or extends beyond the image of 9 x 9"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"photometrics": np.zeros((2, 1, 13), np.float32)}, r"photometrics must be \(2, 2, 13\), got \(2, 1, 13\)"),
        ({"std": (1.0, 1.0, -1.0)}, "std > 0"),
        ({"channels_last": True}, "channels_last=True needs tensors"),
        ({"dtype": torch.int32}, "dtype must be one of"),
        ({"impl": "triton"}, r"impl must be one of \['numba', 'reference'\] for arrays on the CPU, got 'triton'"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {
        "images": np.zeros((2, 9, 9, 3), np.uint8),
        "windows": np.tile(np.array([0, 0, 5, 5]), (2, 2, 1)),
        "photometrics": None,
        "size": 5,
        "mean": MEAN,
        "std": STD,
    }
    with pytest.raises(ValueError, match=message):
        crop_augment(**valid | changes)
