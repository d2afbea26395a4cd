"""The plans of evaluation: the centre against torchvision, the box against the oracle of sample_windows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from saga_fast.errors import SagaError
from saga_fast.kernels.sample_windows.reference import pixel_rectangle
from saga_fast.loaders import BoxPlan, BoxTable, CentrePlan, ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.boxes import pixel_rectangles

SIZES = np.array([[20, 31], [31, 20], [7, 7], [1, 9], [375, 500]])
INDICES = np.arange(len(SIZES))


def random_table(rows: int) -> BoxTable:
    rng = np.random.default_rng(0)
    near = rng.uniform(0.0, 0.9, (rows, 2))
    boxes = np.concatenate([near, (1.0 - near) * rng.uniform(0.01, 1.0, (rows, 2))], 1).astype(np.float32)
    whole = BoxTable.whole(rows)
    return BoxTable(boxes, whole.found, whole.pseudo_label, whole.score)


def test_centre_is_torchvisions(tmp_path: Path) -> None:
    """Where the stored image already has the resized one's size, both cut the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    (batch,) = open_loader("folder", tmp_path, CentrePlan(size=28), LoaderOptions(threads=1), batch_size=1)
    theirs = transforms.CenterCrop(28)(transforms.Resize(32)(Image.fromarray(pixels)))
    assert np.array_equal(batch.views[0, 0].numpy(), np.asarray(theirs))


@pytest.mark.parametrize("fraction", [0.875, 1.0, 0.01])
def test_centre(fraction: float) -> None:
    windows = CentrePlan(size=8, fraction=fraction).windows(3, INDICES, SIZES)
    assert windows.dtype == np.int32
    for (top, left, height, width), (h, w) in zip(windows[:, 0], SIZES, strict=True):
        assert height == width == max(round(fraction * min(h, w)), 1)
        assert abs(top - (h - top - height)) <= 1
        assert abs(left - (w - left - width)) <= 1
        assert min(top, left) >= 0


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_centre_refuses(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction .* {fraction}"):
        CentrePlan(size=8, fraction=fraction)


def test_box_is_the_oracles_rectangle() -> None:
    sizes = np.random.default_rng(1).integers(1, 200, (500, 2))
    table = random_table(len(sizes))
    windows = pixel_rectangles(table.boxes, sizes)
    expected = [pixel_rectangle(box, int(h), int(w)) for box, (h, w) in zip(table.boxes, sizes, strict=True)]
    assert np.array_equal(windows, np.array(expected))


def test_box_beside_the_whole_image() -> None:
    table, whole = random_table(len(SIZES)), WholePlan(size=8)
    plan = BoxPlan(size=8, table=table, first=whole)
    assert (plan.num_views, plan.groups) == (2, ((8, 2),))
    windows = plan.windows(0, INDICES, SIZES)
    assert np.array_equal(windows[:, :1], whole.windows(0, INDICES, SIZES))
    assert np.array_equal(windows[:, 1:], BoxPlan(size=8, table=table).windows(0, INDICES, SIZES))
    with pytest.raises(ValueError, match="one size"):
        BoxPlan(size=8, table=table, first=WholePlan(size=9))


def test_another_data_sets_table_is_refused(make_images: Callable[..., Path], tmp_path: Path) -> None:
    source = ImageFolder(make_images(tmp_path / "images"))
    with pytest.raises(SagaError, match="3 rows"):
        open_loader("folder", source, BoxPlan(size=8, table=random_table(3)), batch_size=4)
    boxes = BoxPlan(size=8, table=random_table(3))
    with pytest.raises(ValueError, match="a plan without a table, got a BoxPlan"):
        BoxPlan(size=8, table=random_table(16), first=boxes)


def test_views_of_both(make_images: Callable[..., Path], tmp_path: Path) -> None:
    source = ImageFolder(make_images(tmp_path / "images", ending=".png"))
    table = random_table(len(source))
    plan = BoxPlan(size=8, table=table, first=CentrePlan(size=8))
    (both,), (centre,), (box,) = (
        list(open_loader("folder", source, p, LoaderOptions(threads=1), batch_size=16))
        for p in (plan, plan.first, BoxPlan(size=8, table=table))
        if p is not None
    )
    assert torch.equal(both.views, torch.cat([centre.views, box.views], 1))
