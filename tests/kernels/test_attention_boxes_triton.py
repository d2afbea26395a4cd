"""attention_boxes in Triton's interpreter against the oracle; unwritten outputs are NaN.

float32 may differ from float64 in a pixel only where the heatmap is within EPSILON of delta. Where the oracle's boxes
at delta - EPSILON and delta + EPSILON are equal, the kernel's box must be bit-identical. Elsewhere it must be between
the two.
"""

from typing import Any, Literal

import pytest
import torch
from triton_worker import interpreted

from saga_fast.kernels import attention_boxes

EPSILON = 1e-5  # rounding error: 1e-6 of the largest value for sums of hundreds of channels, 1e-6 for the upsampling
WHOLE = [0.0, 0.0, 1.0, 1.0]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Images, channels, rows, columns, side of the heatmap; the comment names the case.
SHAPES = [
    (2, 1, 5, 7, 37),  # one channel; sides that do not divide a tile
    (3, 5, 7, 7, 224),  # the map of a ResNet at 224 px
    (2, 3, 1, 1, 5),  # a map of one position has no box
    (1, 4, 2, 1, 7),  # fewer positions than a 16-byte load holds
    (2, 600, 7, 7, 32),  # the channels of an image split among several programs
    (1, 5, 33, 31, 40),  # almost the largest flat map
    (1, 5, 34, 31, 40),  # tiles of a contiguous map
    (2, 37, 9, 11, 300),  # two tiles of positions (channels last), two blocks of columns
    (2, 384, 14, 14, 224),  # the patches of a ViT-S/16
    (1, 384, 28, 28, 224),  # and of a ViT-S/8
]


def maps(batch: int, channels: int, u: int, v: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random features and weights of both signs."""
    generator = torch.Generator().manual_seed(batch + 2 * channels + 3 * u + 5 * v)
    features = torch.randn(batch, channels, u, v, generator=generator)
    return features.to(dtype), torch.randn(batch, channels, generator=generator)


def assert_matches_reference(features: torch.Tensor, weights: torch.Tensor, size: int, **options: Any) -> None:
    delta = options.pop("delta", 0.7)
    boxes, found = interpreted("attention_boxes", features, weights, delta=delta, size=size, impl="triton", **options)
    assert boxes.dtype == torch.float32
    assert found.dtype == torch.bool
    options |= {"size": size, "impl": "reference"}
    outer, outer_found = attention_boxes(features, weights, delta=delta - EPSILON, **options)
    inner, inner_found = attention_boxes(features, weights, delta=delta + EPSILON, **options)
    decided = (outer == inner).all(1) & (outer_found == inner_found)
    assert decided.float().mean() >= 0.5
    torch.testing.assert_close(boxes[decided], outer[decided], rtol=0.0, atol=0.0)
    assert torch.equal(found[decided], outer_found[decided])
    both = ~decided & inner_found
    for large, small in ((outer[both], boxes[both]), (boxes[both], inner[both])):
        assert (large[:, :2] <= small[:, :2]).all()
        assert (large[:, :2] + large[:, 2:] >= small[:, :2] + small[:, 2:] - 1e-6).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int, int, int], layout: Literal["contiguous", "channels_last"]) -> None:
    features, weights = maps(*shape[:4], torch.float32)
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    assert_matches_reference(features, weights, shape[4])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision_features(dtype: torch.dtype, last: bool) -> None:
    for shape in ((4, 5, 7, 7), (2, 300, 5, 7)):
        features, weights = maps(*shape, dtype)
        if last:
            features = features.contiguous(memory_format=torch.channels_last)
        assert_matches_reference(features, weights, 37)
        assert_matches_reference(features, weights.to(dtype), 37)


def test_settings() -> None:
    features, weights = maps(3, 5, 5, 7, torch.float32)
    for delta in (0.0, 0.3, 0.99):
        assert_matches_reference(features, weights, 37, delta=max(delta, EPSILON))
    assert_matches_reference(features + 3.0, weights.abs(), 37, normalize="max")


def test_any_strides() -> None:
    features, weights = maps(2, 6, 10, 14, torch.float32)
    assert_matches_reference(features[:, ::2, 1::2, ::2], weights[:, ::2], 37)
    assert_matches_reference(features.transpose(2, 3), weights, 37)
    tokens = torch.full((2, 5 + 140, 6), torch.nan)  # a vision transformer's, with a class token and registers
    patches = tokens[:, 5:].transpose(1, 2).view(2, 6, 10, 14)
    assert_matches_reference(patches.copy_(features), weights, 37)


def test_maps_without_a_box() -> None:
    features, weights = torch.rand(9, 2, 5, 7), torch.ones(9, 2)
    features[0] = 0.0
    features[1] = 1.0
    features[2] = -features[2]
    features[3, 0, 2, 3] = torch.nan
    features[4, 0, 0, 0] = torch.inf
    features[5, 1, 4, 6] = -torch.inf
    weights[6] = torch.nan
    weights[7, 1] = torch.inf
    boxes, found = interpreted("attention_boxes", features, weights, size=37, impl="triton")
    assert found.tolist() == [False] * 8 + [True]
    assert boxes[:8].tolist() == [WHOLE] * 8


def test_one_pixel_maps() -> None:
    """One nonzero cell at a corner, an edge or inside; sizes above, at and below the map's."""
    cell = torch.tensor([0, 6, 13, 17, 28, 34])
    features = torch.zeros(len(cell), 1, 35)
    features[torch.arange(len(cell)), 0, cell] = 2.0
    for size in (37, 7, 3):
        assert_matches_reference(features.view(-1, 1, 5, 7), torch.ones(len(cell), 1), size)


def test_empty_batch() -> None:
    boxes, found = interpreted("attention_boxes", torch.zeros(0, 3, 5, 7), torch.zeros(0, 3), impl="triton")
    assert boxes.shape == (0, 4)
    assert found.shape == (0,)


def test_explicit_impl_never_falls_back() -> None:
    with pytest.raises(ValueError, match=r"impl must be one of .* for arrays on the CPU, got 'triton'"):
        attention_boxes(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1), impl="triton")
