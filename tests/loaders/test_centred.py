"""ContrastiveCrop's rule: crops as large as those of whole images, their centres in the box by Beta(.6, .6)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import beta  # type: ignore[import-untyped]

from saga_fast.kernels.philox import CENTRE, uniforms_reference
from saga_fast.loaders import BoxTable, CropPlan
from saga_fast.loaders.centred import ALPHA, beta_quantile
from saga_fast.loaders.plan import MoreViews, Views

NDArray = npt.NDArray[Any]
N = 300
INDICES = np.arange(N)


def table_of(boxes: NDArray) -> BoxTable:
    n = len(boxes)
    return BoxTable(boxes.astype(np.float32), np.ones(n, np.bool_), np.zeros(n, np.int32), np.zeros(n, np.float32))


def random_boxes(n: int = N) -> NDArray:
    rng = np.random.default_rng(7)
    near = rng.uniform(0, 0.8, (n, 2))
    return np.concatenate([near, rng.uniform(0.05, 1, (n, 2)) * (1 - near)], 1).astype(np.float32)


BOXES, SIZES = random_boxes(), np.random.default_rng(8).integers(1, 600, (N, 2))


def plan(**options: Any) -> CropPlan:
    usual: dict[str, Any] = {"size": 32, "seed": 3, "table": table_of(BOXES), "crop": "centred"}
    return CropPlan(**(usual | options))


@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_windows_are_the_papers(num_views: int) -> None:
    """Axis by axis: the window's places at both of the box's edges, cut to the image, and a fraction of the way."""
    windows = plan(num_views=num_views).windows(4, INDICES, SIZES)
    drawn = plan(num_views=num_views, table=None).windows(4, INDICES, SIZES)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows[..., 2:], drawn[..., 2:])
    for image, view in np.ndindex(N, num_views):
        uniforms = uniforms_reference(3, 4, image, view, CENTRE, 0)
        x, y, w, h = (float(value) for value in BOXES[image])
        for axis, (near, side) in enumerate(((y, h), (x, w))):
            length, window = int(SIZES[image, axis]), int(windows[image, view, 2 + axis])
            first = min(max(near * length - window / 2, 0), length - window)
            last = min(max((near + side) * length - window / 2, 0), length - window)
            expected = first + (last - first) * beta.ppf(uniforms[axis], ALPHA, ALPHA)
            # To whole pixels; the table of quantiles and float32 boxes are off by less than .01 in 600 px.
            assert abs(windows[image, view, axis] - expected) <= 0.51


def test_centres_lie_in_the_box() -> None:
    """Those of windows that are small enough never to touch the image's edge."""
    boxes = np.tile(np.array([0.3, 0.4, 0.4, 0.2], np.float32), (N, 1))
    sizes = np.tile([400, 500], (N, 1))
    windows = plan(table=table_of(boxes), scale=(0.02, 0.1)).windows(0, INDICES, sizes)
    centres = (windows[..., :2] + 0.5 * windows[..., 2:]) / sizes[:, None]
    half_pixel = 0.5 / 400 + 1e-6
    assert (centres >= np.array([0.4, 0.3]) - half_pixel).all()
    assert (centres <= np.array([0.6, 0.7]) + half_pixel).all()
    # U-shaped: more than the uniform half of them lie in the box's outer quarters.
    assert ((np.abs(centres - 0.5) > np.array([0.05, 0.1])).mean((0, 1)) > 0.55).all()


def test_windows_stay_in_the_image() -> None:
    for epoch in range(3):
        windows = plan().windows(epoch, INDICES, SIZES)
        assert (windows[..., :2] >= 0).all()
        assert (windows[..., :2] + windows[..., 2:] <= SIZES[:, None]).all()


def test_quantiles_are_scipys() -> None:
    u = np.concatenate([[0.0, 1e-12, 1e-6, 0.5, 1 - 1e-6, 1.0], np.linspace(0, 1, 9999)])
    np.testing.assert_allclose(beta_quantile(u), beta.ppf(u, ALPHA, ALPHA), rtol=0, atol=1e-6)


def test_draws_have_the_betas_moments() -> None:
    n = 20_000
    boxes = np.tile(np.array([0.25, 0.25, 0.5, 0.5], np.float32), (n, 1))
    sizes = np.full((n, 2), 10_000)
    windows = plan(table=table_of(boxes), scale=(0.01, 0.01)).windows(0, np.arange(n), sizes)
    fractions = ((windows[..., :2] + 0.5 * windows[..., 2:]) / 10_000 - 0.25) / 0.5
    deviation = beta.std(ALPHA, ALPHA)
    # Four standard errors; the draws are fixed, so this passes always or never.
    assert np.abs(fractions.mean(0) - 0.5).max() < 4 * deviation / n**0.5
    assert np.abs(fractions.std(0) - deviation).max() < 4 * deviation / n**0.5
    # Axes and views are drawn apart.
    correlations = np.corrcoef(fractions.reshape(n, 4).T) - np.eye(4)
    assert np.abs(correlations).max() < 4 / n**0.5


@pytest.mark.parametrize("views", ["att", "mixed", "union"])
def test_windows_do_not_depend_on_the_batch(views: Views) -> None:
    a_plan = plan(views=views)
    together = a_plan.windows(9, INDICES, SIZES)
    for part in (slice(0, 1), slice(5, 90), slice(None, None, -1), slice(3, None, 17)):
        np.testing.assert_array_equal(a_plan.windows(9, INDICES[part], SIZES[part]), together[part])
    assert a_plan.windows(9, INDICES[:0], SIZES[:0]).shape == (0, 2, 4)


def test_windows_change_with_epoch_seed_index_and_view() -> None:
    sizes = np.full((N, 2), 500)
    boxes = table_of(np.tile(np.array([0.2, 0.2, 0.6, 0.6]), (N + 1, 1)))
    options: dict[str, Any] = {"table": boxes, "scale": (0.1, 0.1), "ratio": (1.0, 1.0)}
    first = plan(**options).windows(0, INDICES, sizes)
    others = (
        plan(**options).windows(1, INDICES, sizes),
        plan(**options, seed=4).windows(0, INDICES, sizes),
        plan(**options).windows(0, INDICES + 1, sizes),
        first[:, ::-1],
    )
    for other in others:
        assert (first != other).any(2).mean() > 0.9


@pytest.mark.parametrize("views", ["mixed", "union"])
def test_views_without_a_box_are_plain(views: Views) -> None:
    windows = plan(views=views).windows(5, INDICES, SIZES)
    boxed = (plan(views=views).boxes(5, INDICES) != np.array([0, 0, 1, 1], np.float32)).any(2)
    assert 0.3 < boxed.mean() < 0.7
    expected = np.where(
        boxed[..., None], plan().windows(5, INDICES, SIZES), plan(table=None).windows(5, INDICES, SIZES)
    )
    np.testing.assert_array_equal(windows, expected)


def test_images_without_a_box_are_plain() -> None:
    np.testing.assert_array_equal(
        plan(table=BoxTable.whole(N)).windows(2, INDICES, SIZES), plan(table=None).windows(2, INDICES, SIZES)
    )


def test_views_of_other_sizes_are_centred_too() -> None:
    windows = plan(more=(MoreViews(size=21, scale=(0.6, 0.7)),)).windows(0, INDICES, SIZES)
    three = plan(num_views=3, scale=(0.6, 0.7)).windows(0, INDICES, SIZES)
    np.testing.assert_array_equal(windows[:, 2], three[:, 2])


def test_min_side_widens_the_box_that_centres_are_drawn_in() -> None:
    np.testing.assert_array_equal(
        plan(min_side=1.0).windows(0, INDICES, SIZES), plan(table=None).windows(0, INDICES, SIZES)
    )


def test_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="crop must be 'inside' or 'centred', got 'outside'"):
        plan(crop="outside")
