"""attention_boxes against torch's bicubic interpolation and the oracle, and on maps without a box.

A float32 kernel may differ from float64 in a pixel only where the heatmap is within EPSILON of delta. Boxes grow as
delta falls, so the kernel's box must contain the float64 box at delta + EPSILON and be contained in the one at
delta - EPSILON. All boxes must pass that check; in addition, nearly all edges must be equal.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from saga_fast.kernels import attention_boxes
from saga_fast.kernels.attention_boxes import Normalize

Layout = Literal["contiguous", "channels_last", "sliced", "transposed", "tokens"]
IMPLS = ("numba", "reference")
# Scaled heatmaps reach about 1.2. Sums over ten channels and 16 taps round by some 30 * 2^-24 = 2e-6 of that, and more
# where channels cancel. float16 and bfloat16 features are converted to float32 first, which is exact.
EPSILON = 1e-5
WHOLE = [0.0, 0.0, 1.0, 1.0]
# Channels, rows and columns of the features, side of the heatmap.
SHAPES = [(1, 1, 1, 5), (1, 5, 7, 37), (3, 7, 7, 224), (5, 14, 9, 37), (17, 1, 7, 33), (2, 6, 1, 1), (4, 9, 14, 8)]


def gaussian_maps(batch: int, channels: int, u: int, v: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features with one smooth peak per image and channel, and weights of both signs; float32."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(batch, channels, 2, 1, generator=generator) * 1.2 - 0.1
    width = torch.rand(batch, channels, 2, 1, generator=generator) * 0.3 + 0.15
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in (u, v))
    rows = torch.exp(-(((y - centre[:, :, 0]) / width[:, :, 0]) ** 2))
    columns = torch.exp(-(((x - centre[:, :, 1]) / width[:, :, 1]) ** 2))
    weights = torch.randn(batch, channels, generator=generator) + 0.7
    return rows[..., None] * columns[:, :, None], weights


def torch_edges(
    features: torch.Tensor, weights: torch.Tensor, delta: float, size: int, normalize: str = "minmax"
) -> npt.NDArray[Any]:
    """Return (B, 4) int64 left, top, right, bottom in pixels, computed by torch; -1 for no box."""
    maps = torch.relu(torch.einsum("bc,bcuv->buv", weights.double(), features.double()))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    usable = maps.isfinite().all(-1).all(-1) & (high > low)[:, 0, 0]
    low = low if normalize == "minmax" else torch.zeros_like(low)
    scaled = ((maps - low) / (high - low))[usable]
    edges = torch.full((len(maps), 4), -1)
    if len(scaled):
        upsampled = F.interpolate(scaled[:, None], (size, size), mode="bicubic", align_corners=False)[:, 0]
        for n, mask in zip(usable.nonzero()[:, 0].tolist(), upsampled > delta, strict=True):
            ys, xs = mask.any(1).nonzero(), mask.any(0).nonzero()
            if len(ys):
                edges[n] = torch.stack([xs[0, 0], ys[0, 0], xs[-1, 0] + 1, ys[-1, 0] + 1])
    return edges.numpy()


def edges_of(boxes: torch.Tensor, found: torch.Tensor, size: int) -> npt.NDArray[Any]:
    """Convert boxes to the format of :func:`torch_edges`.

    Asserts that they are on the pixel grid, and that boxes with found = False are the whole image.
    """
    assert boxes.dtype == torch.float32 and found.dtype == torch.bool and boxes.shape == (len(found), 4)
    pixels = boxes.double().numpy() * size
    edges = np.rint(np.concatenate([pixels[:, :2], pixels[:, :2] + pixels[:, 2:]], 1)).astype(np.int64)
    exact = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], 1) / size
    np.testing.assert_array_equal(boxes.numpy(), exact.astype(np.float32))
    np.testing.assert_array_equal(boxes[~found], np.tile(WHOLE, (int((~found).sum()), 1)))
    edges[~found.numpy()] = -1
    return np.asarray(edges)


def assert_between(
    edges: npt.NDArray[Any], features: torch.Tensor, weights: torch.Tensor, delta: float, size: int, normalize: str
) -> None:
    """Assert that the boxes are between those of delta + EPSILON and delta - EPSILON."""
    inner = torch_edges(features, weights, delta + EPSILON, size, normalize)
    outer = torch_edges(features, weights, delta - EPSILON, size, normalize)
    found, certain, possible = edges[:, 0] >= 0, inner[:, 0] >= 0, outer[:, 0] >= 0
    assert not (certain & ~found).any() and not (found & ~possible).any()
    assert (edges[certain][:, :2] <= inner[certain][:, :2]).all()
    assert (edges[certain][:, 2:] >= inner[certain][:, 2:]).all()
    assert (edges[found][:, :2] >= outer[found][:, :2]).all() and (edges[found][:, 2:] <= outer[found][:, 2:]).all()


def with_layout(values: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return the same (B, C, u, v) values in another memory layout."""
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "tokens":  # of a vision transformer: channels last, after a class token and registers
        batch, channels, u, v = values.shape
        tokens = torch.full((batch, 5 + u * v, channels), torch.nan, dtype=values.dtype)
        inside = tokens[:, 5:].transpose(1, 2).view(batch, channels, u, v)
        return inside.copy_(values)
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        larger = torch.full([2 * side + 3 for side in values.shape], torch.nan, dtype=values.dtype)
        inside = larger[tuple(slice(1, 1 + 2 * side, 2) for side in values.shape)]
        return inside.copy_(values)
    return values.contiguous()


@pytest.mark.parametrize("normalize", ["minmax", "max"])
@pytest.mark.parametrize("delta", [0.0, 0.7, 0.95])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape: tuple[int, int, int, int], delta: float, normalize: Normalize) -> None:
    channels, u, v, size = shape
    features, weights = gaussian_maps(23, channels, u, v, seed=size + channels)
    boxes, found = attention_boxes(features, weights, delta=delta, size=size, normalize=normalize, impl="numba")
    oracle = attention_boxes(features, weights, delta=delta, size=size, normalize=normalize, impl="reference")
    torch.testing.assert_close(boxes, oracle[0], rtol=0.0, atol=0.0)
    torch.testing.assert_close(found, oracle[1], rtol=0.0, atol=0.0)
    assert (u, v) != (1, 1) or not found.any()
    assert_between(edges_of(boxes, found, size), features, weights, delta, size, normalize)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed", "tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(9, 5, 7, 37), (1, 7, 7, 56), (384, 14, 14, 224), (384, 28, 28, 224)], ids=str)
def test_dtypes_and_layouts(shape: tuple[int, int, int, int], dtype: torch.dtype, layout: Layout) -> None:
    channels, u, v, size = shape
    values, weights = (tensor.to(dtype) for tensor in gaussian_maps(31, channels, u, v, seed=4))
    features = with_layout(values, layout)
    assert torch.equal(features, values)
    edges = edges_of(*attention_boxes(features, weights, size=size, impl="numba"), size)
    assert_between(edges, values, weights, 0.7, size, "minmax")
    oracle = edges_of(*attention_boxes(features, weights, size=size, impl="reference"), size)
    np.testing.assert_array_equal(edges, oracle)
    np.testing.assert_array_equal(oracle, torch_edges(values, weights, 0.7, size))


def test_pixel_edges_of_smooth_maps() -> None:
    """Of 2,000 boxes, at least 99.5 % equal float64 in all four edges; no edge differs by 2 pixels."""
    num_different = 0
    for seed in range(10):
        features, weights = gaussian_maps(200, 8, 7, 7, seed)
        edges = edges_of(*attention_boxes(features, weights, size=112, impl="numba"), 112)
        expected = torch_edges(features, weights, 0.7, 112)
        assert (expected >= 0).all(1).mean() > 0.9
        assert np.abs(edges - expected).max() <= 1
        num_different += int((edges != expected).any(1).sum())
    assert num_different <= 10


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("cell", [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3), (0, 3)])
def test_one_pixel_masks(cell: tuple[int, int], impl: str) -> None:
    """With size = cells, bicubic upsampling is the identity, so one nonzero cell gives a box of one pixel."""
    row, column = cell
    features = torch.zeros(1, 2, 7, 7)
    features[0, 1, row, column] = 3.0
    boxes, found = attention_boxes(features, torch.tensor([[5.0, 0.25]]), size=7, impl=impl)
    assert found.tolist() == [True]
    torch.testing.assert_close(boxes, torch.tensor([[column / 7, row / 7, 1 / 7, 1 / 7]]), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_box_spans_separate_peaks(impl: str) -> None:
    maps = np.zeros((1, 1, 5, 7), np.float32)
    maps[0, 0, 1, 5], maps[0, 0, 3, 2], maps[0, 0, 4, 6] = 1.0, 0.9, 0.5
    boxes, found = attention_boxes(maps, np.ones((1, 1), np.float32), size=35, impl=impl)
    left, top, right, bottom = torch_edges(torch.from_numpy(maps), torch.ones(1, 1), 0.7, 35)[0]
    assert found.all() and left < 15 and right > 25 and top < 10 and bottom > 21
    np.testing.assert_array_equal(
        boxes, np.array([[left, top, right - left, bottom - top]], np.float32) / np.float32(35)
    )


def not_found_maps() -> dict[str, torch.Tensor]:
    peak = gaussian_maps(1, 1, 5, 7, seed=1)[0][0, 0]
    maps = {
        "zero": torch.zeros(5, 7),
        "constant": torch.full((5, 7), 0.3),
        "negative": -peak - 0.1,
        "negative_constant": torch.full((5, 7), -2.0),
    }
    for name, value in (("nan", torch.nan), ("inf", torch.inf), ("minus_inf", -torch.inf)):
        maps[name] = peak.clone()
        maps[name][2, 3] = value
    return maps


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("normalize", ["minmax", "max"])
@pytest.mark.parametrize(
    ("name", "impl"),
    [
        *((name, impl) for name in not_found_maps() for impl in IMPLS),
    ],
)
def test_maps_without_a_box(name: str, impl: str, normalize: Normalize, channels_last: bool) -> None:
    """They give the whole image and found = False; the remaining images of the batch keep their boxes."""
    features, _ = gaussian_maps(3, 2, 5, 7, seed=2)
    weights = torch.ones(3, 2)
    features[1] = 0.0
    features[1, 0] = not_found_maps()[name]
    layout: Layout = "channels_last" if channels_last else "contiguous"
    boxes, found = attention_boxes(with_layout(features, layout), weights, size=37, normalize=normalize, impl=impl)
    assert found.tolist() == [True, False, True]
    assert boxes[1].tolist() == WHOLE
    expected = torch_edges(features, weights, 0.7, 37, normalize)
    np.testing.assert_array_equal(edges_of(boxes, found, 37)[::2], expected[::2])


@pytest.mark.parametrize("impl", IMPLS)
def test_found_needs_a_pixel_above_delta(impl: str) -> None:
    """Upsampling samples between the cells and lowers a sharp peak, so found depends on delta."""
    features = torch.zeros(1, 1, 7, 7)
    features[0, 0, 3, 3] = 1.0
    weights = torch.ones(1, 1)
    peak = F.interpolate(features.double(), (14, 14), mode="bicubic", align_corners=False).max().item()
    assert 0.5 < peak < 0.95
    for delta, expected in ((peak - 1e-3, True), (peak + 1e-3, False), (0.95, False)):
        boxes, found = attention_boxes(features, weights, delta=delta, size=14, impl=impl)
        assert found.tolist() == [expected]
        assert (boxes[0].tolist() == WHOLE) != expected


@pytest.mark.parametrize("impl", IMPLS)
def test_normalize_changes_the_threshold(impl: str) -> None:
    """All of a map in [0.8, 1] is above 0.7 of its maximum, but not above 0.7 of its range."""
    maps = torch.linspace(0.8, 1.0, 7).expand(1, 1, 7, 7)
    weights = torch.ones(1, 1)
    by_max = attention_boxes(maps, weights, size=21, normalize="max", impl=impl)
    by_range = attention_boxes(maps, weights, size=21, normalize="minmax", impl=impl)
    assert by_max[0].tolist() == [WHOLE] and by_max[1].tolist() == [True]
    np.testing.assert_array_equal(edges_of(*by_range, 21), torch_edges(maps, weights, 0.7, 21))
    assert by_range[0][0, 0] > 0.5 and by_range[0][0, 2] < 0.5


def test_numpy_in_numpy_out() -> None:
    features, weights = gaussian_maps(5, 3, 5, 7, seed=3)
    boxes, found = attention_boxes(features.numpy(), weights.numpy(), size=37)
    assert isinstance(boxes, np.ndarray) and isinstance(found, np.ndarray)
    expected = torch_edges(features, weights, 0.7, 37)
    np.testing.assert_array_equal(edges_of(torch.from_numpy(boxes), torch.from_numpy(found), 37), expected)


def test_features_with_a_gradient() -> None:
    features, weights = (tensor.requires_grad_() for tensor in gaussian_maps(3, 3, 5, 7, seed=3))
    boxes, found = attention_boxes(features, weights, size=37)
    assert not boxes.requires_grad
    np.testing.assert_array_equal(edges_of(boxes, found, 37), torch_edges(features.detach(), weights.detach(), 0.7, 37))


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str) -> None:
    boxes, found = attention_boxes(torch.zeros(0, 3, 5, 7), torch.zeros(0, 3), impl=impl)
    assert (boxes.shape, boxes.dtype, found.shape, found.dtype) == ((0, 4), torch.float32, (0,), torch.bool)


@pytest.mark.parametrize(
    ("features", "weights", "options", "message"),
    [
        ((2, 3, 5), (2, 3), {}, r"features must be \(B, C, u, v\)"),
        ((2, 3, 5, 7), (2, 4), {}, r"got \(2, 3, 5, 7\) and \(2, 4\)"),
        ((2, 3, 5, 7), (3,), {}, r"weights \(B, C\)"),
        ((2, 0, 5, 7), (2, 0), {}, "at least one channel"),
        ((2, 3, 0, 7), (2, 3), {}, "at least one channel and one position"),
        ((2, 3, 5, 7), (2, 3), {"delta": 1.0}, "delta must be in .*, got 1.0"),
        ((2, 3, 5, 7), (2, 3), {"delta": -0.1}, "delta must be in .*, got -0.1"),
        ((2, 3, 5, 7), (2, 3), {"delta": float("nan")}, "delta must be in .*, got nan"),
        ((2, 3, 5, 7), (2, 3), {"size": 0}, "size must be at least 1, got 0"),
        ((2, 3, 5, 7), (2, 3), {"normalize": "l2"}, "normalize must be .*, got 'l2'"),
        ((2, 3, 5, 7), (2, 3), {"impl": "cuda"}, "impl must be one of .*, got 'cuda'"),
    ],
)
def test_errors(features: tuple[int, ...], weights: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_boxes(torch.ones(features), torch.ones(weights), **options)
