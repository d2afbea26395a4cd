"""Plans: which box a view is cropped from, and windows that depend on (seed, epoch, index, view) alone."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from saga_fast.loaders import BoxTable, CropPlan, WholePlan
from saga_fast.loaders.plan import MoreViews, Views

NDArray = npt.NDArray[Any]
WHOLE = np.array([0, 0, 1, 1], np.float32)
N = 400


def table_of(boxes: Any) -> BoxTable:
    boxes = np.asarray(boxes, np.float32)
    n = len(boxes)
    return BoxTable(boxes, np.ones(n, np.bool_), np.zeros(n, np.int32), np.zeros(n, np.float32))


def random_boxes(n: int = N) -> NDArray:
    rng = np.random.default_rng(7)
    near = rng.uniform(0, 0.8, (n, 2))
    return np.concatenate([near, rng.uniform(0.05, 1, (n, 2)) * (1 - near)], 1).astype(np.float32)


def random_sizes(n: int = N) -> NDArray:
    return np.random.default_rng(8).integers(1, 600, (n, 2))


BOXES, SIZES, INDICES = random_boxes(), random_sizes(), np.arange(N)


def plan(**options: Any) -> CropPlan:
    usual: dict[str, Any] = {"size": 32, "seed": 3, "table": table_of(BOXES)}
    return CropPlan(**(usual | options))


def rectangle(box: NDArray, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right in pixels (DESIGN 2); an edge within 1e-3 px of a pixel's border is on it."""
    x, y, w, h = (float(value) for value in box)
    left, top = min(math.floor(x * width + 1e-3), width - 1), min(math.floor(y * height + 1e-3), height - 1)
    right, bottom = math.ceil((x + w) * width - 1e-3), math.ceil((y + h) * height - 1e-3)
    return top, left, min(max(bottom, top + 1), height), min(max(right, left + 1), width)


def assert_inside(windows: NDArray, boxes: NDArray, sizes: NDArray) -> None:
    """windows (B, V, 4) in the pixel rectangles of boxes (B, 4) of images of the sizes (B, 2)."""
    assert windows.dtype == np.int32
    inside = np.array([rectangle(box, int(h), int(w)) for box, (h, w) in zip(boxes, sizes, strict=True)])[:, None]
    top, left, height, width = np.moveaxis(windows, 2, 0)
    assert (height >= 1).all() and (width >= 1).all()
    assert (top >= inside[..., 0]).all() and (left >= inside[..., 1]).all()
    assert (top + height <= inside[..., 2]).all() and (left + width <= inside[..., 3]).all()


@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_windows_stay_in_the_box(num_views: int) -> None:
    windows = plan(num_views=num_views).windows(0, INDICES, SIZES)
    assert windows.shape == (N, num_views, 4)
    assert_inside(windows, BOXES, SIZES)


def test_windows_stay_in_boxes_of_a_pixel_and_less() -> None:
    boxes = np.array([[0.5, 0.5, 1e-6, 1e-6], [0.999, 0.999, 0.001, 0.001], [0, 0, 1e-5, 1], [0.25, 0.75, 0.25, 0.25]])
    sizes = np.array([[50, 70], [10, 10], [33, 35], [4, 4]])
    windows = plan(table=table_of(boxes)).windows(0, np.arange(4), sizes)
    assert_inside(windows, boxes, sizes)
    assert windows[:2, :, 2:].tolist() == [[[1, 1]] * 2] * 2
    assert windows[3].tolist() == [[3, 1, 1, 1]] * 2


def test_windows_are_of_the_asked_scale_and_ratio() -> None:
    sizes = np.full((N, 2), 1000)
    windows = plan(scale=(0.2, 0.3), ratio=(0.9, 1.1), table=None).windows(0, INDICES, sizes).astype(np.float64)
    area, ratio = windows[..., 2] * windows[..., 3] / 1e6, windows[..., 3] / windows[..., 2]
    # A side is rounded by half a pixel of at least 420.
    assert 0.2 * 0.997 <= area.min() < 0.21 and 0.29 < area.max() <= 0.3 * 1.003
    assert 0.9 * 0.997 <= ratio.min() < 0.91 and 1.09 < ratio.max() <= 1.1 * 1.003


def test_without_a_table_crops_are_from_the_whole_image() -> None:
    windows = plan(table=None).windows(0, INDICES, SIZES)
    assert_inside(windows, np.tile(WHOLE, (N, 1)), SIZES)
    np.testing.assert_array_equal(windows, plan(table=BoxTable.whole(N)).windows(0, INDICES, SIZES))
    np.testing.assert_array_equal(plan(table=None).boxes(0, INDICES), np.broadcast_to(WHOLE, (N, 2, 4)))


def test_att_crops_all_views_from_the_box() -> None:
    np.testing.assert_array_equal(plan(num_views=3).boxes(0, INDICES), np.repeat(BOXES[:, None], 3, 1))


@pytest.mark.parametrize("num_views", [2, 3])
def test_mixed_crops_all_views_but_the_first_from_the_box(num_views: int) -> None:
    mixed = plan(views="mixed", num_views=num_views)
    boxes = mixed.boxes(0, INDICES)
    np.testing.assert_array_equal(boxes[:, 0], np.broadcast_to(WHOLE, (N, 4)))
    np.testing.assert_array_equal(boxes[:, 1:], np.repeat(BOXES[:, None], num_views - 1, 1))
    # A view's draws are its own, so each equals the same view of the plan that crops all views alike.
    windows = mixed.windows(4, INDICES, SIZES)
    plain = plan(table=None, num_views=num_views).windows(4, INDICES, SIZES)
    np.testing.assert_array_equal(windows[:, 0], plain[:, 0])
    np.testing.assert_array_equal(windows[:, 1:], plan(num_views=num_views).windows(4, INDICES, SIZES)[:, 1:])


@pytest.mark.parametrize("views", ["mixed", "paste"])
def test_whole_views(views: Views) -> None:
    """Global views of the whole image, the other views from the box (DINO); ``paste`` has one view more, its second."""
    local = MoreViews(size=16, count=3)
    pasted = int(views == "paste")
    boxes = plan(views=views, num_views=3 + pasted, whole_views=2, more=(local,)).boxes(0, INDICES)
    whole = (boxes == WHOLE).all(2)
    assert [bool(view.all()) for view in whole.T] == [True, *[False] * pasted, True, False, False, False, False]
    np.testing.assert_array_equal(boxes[:, -4:], np.repeat(BOXES[:, None], 4, 1))
    for options in ({"num_views": 2, "whole_views": 3}, {"whole_views": 0}):
        with pytest.raises(ValueError, match="whole_views must be in 1 to num_views 2"):
            plan(views="mixed", **options)
    with pytest.raises(ValueError, match="needs two views"):
        plan(views="mixed", num_views=2, whole_views=2)


def chosen(union: CropPlan, epoch: int, indices: NDArray) -> NDArray:
    """(B,) bool: the images that enter as their crop. All of an image's views do, or none."""
    assert union.table is not None
    boxes = union.boxes(epoch, indices)
    crop = (boxes == union.table.boxes[indices][:, None]).all(2)
    whole = (boxes == WHOLE).all(2)
    assert (crop != whole).all()
    assert (crop == crop[:, :1]).all()
    return np.asarray(crop[:, 0])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_union_draws_the_share_again_every_epoch(share: float) -> None:
    n = 10_000
    union = plan(views="union", share=share, table=table_of(random_boxes(n)))
    first, second = (chosen(union, epoch, np.arange(n)) for epoch in (0, 1))
    for fraction, expected in (
        (first.mean(), share),
        (second.mean(), share),
        ((first & second).mean(), share * share),  # independent: as often both as chance has it
    ):
        # Four standard deviations; the draws are fixed, so this passes always or never.
        assert abs(fraction - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    np.testing.assert_array_equal(chosen(union, 0, np.arange(n)), first)
    np.testing.assert_array_equal(chosen(union, 0, np.arange(n)[::-7]), first[::-7])
    assert (chosen(plan(views="union", share=share, table=union.table, seed=4), 0, np.arange(n)) != first).any()


def test_union_crops_as_att_or_as_without_a_table() -> None:
    union = plan(views="union")
    crop = chosen(union, 5, INDICES)
    expected = np.where(
        crop[:, None, None], plan().windows(5, INDICES, SIZES), plan(table=None).windows(5, INDICES, SIZES)
    )
    np.testing.assert_array_equal(union.windows(5, INDICES, SIZES), expected)


def test_union_of_share_0_and_1() -> None:
    assert not chosen(plan(views="union", share=0.0), 0, INDICES).any()
    assert chosen(plan(views="union", share=1.0), 0, INDICES).all()


@pytest.mark.parametrize("views", ["att", "mixed", "union"])
def test_windows_do_not_depend_on_the_batch(views: Views) -> None:
    a_plan = plan(views=views)
    together = a_plan.windows(9, INDICES, SIZES)
    for part in (slice(0, 1), slice(5, 90), slice(None, None, -1), slice(3, None, 17)):
        np.testing.assert_array_equal(a_plan.windows(9, INDICES[part], SIZES[part]), together[part])
    assert a_plan.windows(9, INDICES[:0], SIZES[:0]).shape == (0, 2, 4)


def test_windows_change_with_epoch_seed_index_and_view() -> None:
    sizes = np.full((N, 2), 500)
    first = plan(table=None).windows(0, INDICES, sizes)
    others = (
        plan(table=None).windows(1, INDICES, sizes),
        plan(table=None, seed=4).windows(0, INDICES, sizes),
        plan(table=None).windows(0, INDICES + 1, sizes),
        first[:, ::-1],
    )
    for other in others:
        assert (first != other).any(2).mean() > 0.99


@pytest.mark.parametrize(
    ("box", "min_side", "expected"),
    [
        ((0.4, 0.4, 0.2, 0.1), 0.5, (0.25, 0.2, 0.5, 0.5)),
        ((0.9, 0.0, 0.1, 0.1), 0.5, (0.5, 0.0, 0.5, 0.5)),
        ((0.1, 0.4, 0.8, 0.2), 0.5, (0.1, 0.25, 0.8, 0.5)),
        ((0.9, 0.4, 0.1, 0.2), 1.0, (0.0, 0.0, 1.0, 1.0)),
        ((0.4, 0.4, 0.2, 0.04), 0.2, (0.4, 0.32, 0.2, 0.2)),
    ],
)
def test_min_side(box: tuple[float, ...], min_side: float, expected: tuple[float, ...]) -> None:
    boxes = plan(table=table_of([box]), num_views=1, min_side=min_side).boxes(0, np.array([0]))
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("min_side", [0.2, 0.4, 0.7])
def test_widened_boxes_hold_the_box_and_stay_in_the_image(min_side: float) -> None:
    wide = plan(num_views=1, min_side=min_side)
    boxes = wide.boxes(0, INDICES)[:, 0]
    assert len(table_of(boxes)) == N  # the table's own check: finite and in [0, 1]
    assert (boxes[:, :2] <= BOXES[:, :2] + 1e-6).all()
    assert (boxes[:, :2] + boxes[:, 2:] >= BOXES[:, :2] + BOXES[:, 2:] - 1e-6).all()
    assert (boxes[:, 2:] >= min_side - 1e-6).all()
    assert (boxes != BOXES).any(1).mean() > 0.5
    assert_inside(wide.windows(0, INDICES, SIZES), boxes, SIZES)


@pytest.mark.parametrize("views", ["mixed", "union"])
def test_whole_images_are_not_widened(views: Views) -> None:
    np.testing.assert_array_equal(
        (plan(views=views).boxes(0, INDICES) == WHOLE).all(2),
        (plan(views=views, min_side=0.1).boxes(0, INDICES) == WHOLE).all(2),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"views": "both"},
        {"share": -0.1},
        {"share": 1.1},
        {"share": math.nan},
        {"min_side": -0.1},
        {"min_side": math.nan},
        {"min_side": 1.1},
        {"size": 0},
        {"num_views": 0},
        {"scale": (0.5, 0.2)},
        {"scale": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
    ],
    ids=repr,
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    # Here and not in the first batch, where a thread of the loader would meet them.
    with pytest.raises(ValueError, match=next(iter(options))):
        plan(**options)


@pytest.mark.parametrize("num_views", [1, 2])
def test_whole_plan_is_the_whole_image_in_any_epoch(num_views: int) -> None:
    whole = WholePlan(size=32, num_views=num_views)
    for epoch in (0, 7):
        windows = whole.windows(epoch, INDICES, SIZES)
        assert windows.dtype == np.int32
        assert windows.shape == (N, num_views, 4)
        assert (windows[..., :2] == 0).all()
        assert (windows[..., 2:] == SIZES[:, None]).all()
