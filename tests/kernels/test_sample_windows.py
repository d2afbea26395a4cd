"""sample_windows against the oracle and torchvision's RandomResizedCrop, and its keyed draws."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import ks_2samp  # type: ignore[import-untyped]
from torchvision.transforms import v2

from saga_fast.kernels import sample_windows

NDArray = npt.NDArray[Any]
IMPLS = ("numba", "reference")
WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)


def draw_windows(
    boxes: NDArray,
    sizes: NDArray,
    *,
    seed: int = 0,
    epoch: int = 0,
    indices: NDArray | None = None,
    num_views: int = 2,
    **options: Any,
) -> NDArray:
    """Call :func:`sample_windows`; the default index is the position in the batch."""
    indices = np.arange(len(sizes)) if indices is None else indices
    return sample_windows(boxes, sizes, seed=seed, epoch=epoch, indices=indices, num_views=num_views, **options)


def random_rectangles(count: int, seed: int) -> tuple[NDArray, NDArray]:
    """Return rectangles (top, left, height, width) in images of 1 to 500 px, and image sizes; int64.

    The first hundred images have sides of at most 3 px. Each third rectangle is one pixel, each fourth the whole
    image.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, np.where(np.arange(count) < 100, 4, 501)[:, None], size=(count, 2))
    sides = rng.integers(1, sizes + 1)
    sides[::3] = 1
    sides[::4] = sizes[::4]
    return np.concatenate([rng.integers(0, sizes - sides + 1), sides], 1), sizes


def normalised_boxes(rectangles: NDArray, sizes: NDArray) -> NDArray:
    """Convert pixel rectangles (top, left, height, width) to normalised float32 boxes [x, y, w, h]."""
    return (rectangles[:, [1, 0, 3, 2]] / sizes[:, [1, 0, 1, 0]]).astype(np.float32)


def random_boxes(count: int, seed: int) -> tuple[NDArray, NDArray]:
    """Return boxes off the pixel grid, among them tiny, empty, on the far border and slightly beyond it."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 501, size=(count, 2))
    boxes = rng.random((count, 4))
    boxes[:, 2:] *= 1.0 - boxes[:, :2]
    boxes[::5, 2:] *= 1e-3
    boxes[::7, 2:] = 0.0
    boxes[::11, :2] = 1.0
    boxes[::13, 2:] += 0.02
    return boxes.astype(np.float32), sizes


def torchvision_windows(height: int, width: int, count: int, **options: Any) -> NDArray:
    """Draw (count, 4) windows with torchvision's RandomResizedCrop; seeded."""
    transform, image = v2.RandomResizedCrop(8, **options), torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(count)]
    return np.array([[params[name] for name in ("top", "left", "height", "width")] for params in drawn])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": (0.2, 1.0)},
        {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)},
        {"scale": (0.001, 0.02), "ratio": (0.1, 10.0)},
        {"scale": (0.9, 1.5), "ratio": (2.0, 3.0)},
    ],
    ids=str,
)
def test_numba_equals_reference(options: dict[str, Any]) -> None:
    rectangles, rectangle_sizes = random_rectangles(200, seed=1)
    boxes, box_sizes = random_boxes(150, seed=2)
    boxes = np.concatenate([normalised_boxes(rectangles, rectangle_sizes), boxes])
    sizes = np.concatenate([rectangle_sizes, box_sizes])
    key: dict[str, Any] = {
        "seed": 2**40 + 3,
        "epoch": 17,
        "indices": np.arange(len(sizes)) * (2**33 + 1),
        "num_views": 3,
    }
    windows = draw_windows(boxes, sizes, impl="numba", **key, **options)
    assert windows.dtype == np.int32 and windows.shape == (350, 3, 4)
    np.testing.assert_array_equal(windows, draw_windows(boxes, sizes, impl="reference", **key, **options))


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(480, 640, (0.08, 1.0)), (333, 222, (0.2, 1.0)), (150, 401, (0.5, 1.0))],
    ids=["landscape", "portrait", "often rejected"],
)
def test_distribution_of_torchvision(height: int, width: int, scale: tuple[float, float]) -> None:
    """Two-sample Kolmogorov-Smirnov tests of area, ratio and both centres give p > 0.01 at these seeds.

    With 3,000 samples each, a distance of 0.042 between the distributions fails. Drawing the ratio uniformly, instead
    of its logarithm, gives 0.07.
    """
    count = 3000
    sizes = np.tile([height, width], (count, 1))
    windows = draw_windows(np.tile(WHOLE, (count, 1)), sizes, seed=7, num_views=1, scale=scale)[:, 0]
    torchvision = torchvision_windows(height, width, count, scale=scale)

    def statistics(windows: NDArray) -> dict[str, NDArray]:
        top, left, h, w = windows.T.astype(np.float64)
        centres = {"vertical centre": top + h / 2, "horizontal centre": left + w / 2}
        return {"area": h * w, "log ratio": np.log(w / h), **centres}

    expected = statistics(torchvision)
    for name, values in statistics(windows).items():
        assert ks_2samp(values, expected[name]).pvalue > 0.01, name


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0), (0.5, 0.6), (1.5, 2.0)], ids=str)
def test_fallback_equals_torchvision(ratio: tuple[float, float], impl: str) -> None:
    """With scale 1 and a ratio that does not fit, all tries fail and the window depends only on the size.

    Tested on the whole image and on a box inside a larger one.
    """
    sizes = np.array([(10, 400), (400, 10), (1, 7), (7, 1), (37, 101), (101, 37), (90, 333)])
    expected = np.concatenate([torchvision_windows(h, w, 1, scale=(1.0, 1.0), ratio=ratio) for h, w in sizes.tolist()])
    options: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": ratio, "num_views": 1, "impl": impl}
    whole = draw_windows(np.tile(WHOLE, (len(sizes), 1)), sizes, **options)[:, 0]
    np.testing.assert_array_equal(whole, expected)
    rectangles = np.concatenate([np.tile([11, 5], (len(sizes), 1)), sizes], 1)
    inside = draw_windows(normalised_boxes(rectangles, sizes + 23), sizes + 23, **options)[:, 0]
    expected[:, :2] += (11, 5)
    np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_windows_stay_inside_boxes_on_the_grid(impl: str) -> None:
    """float32 cannot hold k / size exactly, and still no window contains a pixel outside its box."""
    rectangles, sizes = random_rectangles(300, seed=3)
    boxes = normalised_boxes(rectangles, sizes)
    top, left, height, width = draw_windows(boxes, sizes, num_views=5, scale=(0.3, 1.0), impl=impl).T
    box_top, box_left, box_height, box_width = rectangles.T
    assert (height >= 1).all() and (width >= 1).all()
    assert (top >= box_top).all() and (left >= box_left).all()
    assert (top + height <= box_top + box_height).all() and (left + width <= box_left + box_width).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_the_largest_window_is_the_whole_rectangle(impl: str) -> None:
    """With scale 1 and the rectangle's ratio, the only possible window is the rectangle."""
    rectangles, sizes = random_rectangles(150, seed=4)
    boxes = normalised_boxes(rectangles, sizes)
    for n, (_, _, height, width) in enumerate(rectangles.tolist()):
        options: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (width / height,) * 2, "impl": impl}
        window = draw_windows(boxes[n : n + 1], sizes[n : n + 1], num_views=1, **options)
        np.testing.assert_array_equal(window[0, 0], rectangles[n])


@pytest.mark.parametrize("impl", IMPLS)
def test_windows_stay_inside_any_box(impl: str) -> None:
    """The pixel rectangle is floor of the near edge, ceil of the far edge, clamped, at least one pixel."""
    boxes, sizes = random_boxes(300, seed=5)
    near, extent, image = boxes[:, 1::-1].astype(np.float64), boxes[:, :1:-1].astype(np.float64), sizes
    first = np.clip(np.floor(near * image + 1e-3), 0, image - 1)
    last = np.clip(np.ceil((near + extent) * image - 1e-3), first + 1, image)
    windows = draw_windows(boxes, sizes, num_views=4, scale=(0.3, 1.0), impl=impl)
    begin, end = windows[..., :2], windows[..., :2] + windows[..., 2:]
    assert (windows[..., 2:] >= 1).all()
    assert (begin >= first[:, None]).all() and (end <= last[:, None]).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("ratio", [(0.2, 0.3), (3.0, 4.0)], ids=str)
def test_extreme_ratios_leave_one_pixel(ratio: tuple[float, float], impl: str) -> None:
    windows = draw_windows(WHOLE[None], np.array([[1, 1]]), num_views=1, ratio=ratio, impl=impl)
    np.testing.assert_array_equal(windows[0, 0], [0, 0, 1, 1])


def test_a_window_does_not_depend_on_its_batch() -> None:
    boxes, sizes = random_boxes(101, seed=6)
    indices = np.random.default_rng(6).permutation(101) + 2**32
    whole = draw_windows(boxes, sizes, indices=indices)
    order = np.random.default_rng(7).permutation(101)
    np.testing.assert_array_equal(draw_windows(boxes[order], sizes[order], indices=indices[order]), whole[order])
    for n in (0, 50, 100):
        alone = draw_windows(boxes[n : n + 1], sizes[n : n + 1], indices=indices[n : n + 1], num_views=5)
        np.testing.assert_array_equal(alone[0, :2], whole[n])


def test_a_box_per_view() -> None:
    """View v with boxes (B, V, 4) equals view v of a batch with box v for all views."""
    boxes = np.stack([random_boxes(37, seed)[0] for seed in (8, 9, 10)], 1)
    _, sizes = random_boxes(37, seed=8)
    windows = draw_windows(boxes, sizes, num_views=3)
    for view in range(3):
        np.testing.assert_array_equal(windows[:, view], draw_windows(boxes[:, view], sizes, num_views=3)[:, view])
    assert (windows[:, 0] != draw_windows(boxes[:, 1], sizes, num_views=3)[:, 0]).any(1).mean() > 0.75


def test_all_parts_of_the_key_change_the_window() -> None:
    boxes, sizes = np.tile(WHOLE, (101, 1)), np.tile([375, 500], (101, 1))
    first = draw_windows(boxes, sizes, seed=1, epoch=2)
    np.testing.assert_array_equal(draw_windows(boxes, sizes, seed=1, epoch=2), first)
    changed_draws = {
        "seed": draw_windows(boxes, sizes, seed=2, epoch=2),
        "high word of the seed": draw_windows(boxes, sizes, seed=2**32 + 1, epoch=2),
        "epoch": draw_windows(boxes, sizes, seed=1, epoch=3),
        "view": first[:, ::-1],
        "index": np.roll(first, 1, 0),
        "high word of the index": draw_windows(boxes, sizes, seed=1, epoch=2, indices=np.arange(101) + 2**32),
    }
    for name, changed in changed_draws.items():
        assert (changed != first).any(-1).mean() > 0.99, name


def test_tensors_in_tensors_out() -> None:
    boxes, sizes = random_boxes(7, seed=11)
    windows = sample_windows(
        torch.from_numpy(boxes), torch.from_numpy(sizes), seed=0, epoch=0, indices=torch.arange(7), num_views=2
    )
    assert isinstance(windows, torch.Tensor) and windows.dtype == torch.int32
    np.testing.assert_array_equal(windows.numpy(), draw_windows(boxes, sizes, impl="reference"))


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str) -> None:
    windows = draw_windows(np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int64), num_views=3, impl=impl)
    assert windows.shape == (0, 3, 4) and windows.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((2, 4))}, r"boxes must be .* with B 3, got \(2, 4\)"),
        ({"boxes": np.zeros((3, 1, 4))}, r"got \(3, 1, 4\)"),
        ({"sizes": np.ones((3, 3), np.int64)}, r"sizes must be \(B, 2\)"),
        ({"sizes": np.array([[5, 7], [5, 0], [5, 7]])}, "sizes must be at least 1 pixel, got 0"),
        ({"indices": np.arange(4)}, r"indices \(B,\), got \(3, 2\) and \(4,\)"),
        ({"num_views": 0}, r"num_views must be in \[1, 256\], got 0"),
        ({"num_views": 257}, r"num_views must be in \[1, 256\], got 257"),
        ({"scale": (1.0, 0.5)}, r"scale must be \(low, high\) .*, got \(1.0, 0.5\)"),
        ({"scale": (0.0, 0.5)}, r"scale must be \(low, high\) with 0 < low <= high"),
        ({"ratio": (-1.0, 0.5)}, r"ratio must be \(low, high\) with 0 < low <= high"),
        ({"ratio": (float("nan"), 0.5)}, r"ratio must be \(low, high\) with 0 < low <= high"),
        ({"impl": "triton"}, "impl must be one of .*, got 'triton'"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    valid = {"boxes": np.tile(WHOLE, (3, 1)), "sizes": np.full((3, 2), 9), "indices": np.arange(3), "num_views": 2}
    with pytest.raises(ValueError, match=message):
        sample_windows(**{"seed": 0, "epoch": 0, **valid, **changes})
