"""The folder engine: the plan's windows of Pillow's pixels, whatever the threads, the batch size and the prefetch."""

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.kernels import crop_resize
from saga_fast.loaders import Batch, BoxTable, CropPlan, ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.encoded import FileRange
from saga_fast.loaders.plan import Plan

NDArray = npt.NDArray[Any]
N = 23
SIZE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images of many sizes, formats and modes in three classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    suffixes = (".jpg", ".png", ".webp", ".jpeg", ".bmp")
    for number in range(N):
        path = root / f"class {number % 3}" / f"{number:02}{suffixes[number % 5]}"
        path.parent.mkdir(exist_ok=True)
        height, width = rng.integers(3, 60, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.convert("L" if number % 4 == 1 else "RGB").save(path, "PNG" if number == 3 else None)  # a PNG named .jpeg
    return root


@pytest.fixture(scope="module")
def source(root: Path) -> ImageFolder:
    return ImageFolder(root)


def make_table(n: int, *, seed: int = 0, dataset: str | None = None) -> BoxTable:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 0.7, (n, 2))
    boxes = np.concatenate([near, rng.uniform(0.3, 1, (n, 2)) * (1 - near)], 1).astype(np.float32)
    metadata = {} if dataset is None else {"dataset": dataset}
    return BoxTable(boxes, np.ones(n, np.bool_), np.zeros(n, np.int32), np.zeros(n, np.float32), metadata)


CROPS = CropPlan(size=SIZE, seed=5)
OPTIONS = LoaderOptions(batch_size=4, threads=2)


def open_source(
    source: ImageFolder | Path | str,
    plan: Plan = CROPS,
    options: LoaderOptions = OPTIONS,
    *,
    batch_size: int | None = None,
    shuffle: bool | None = None,
) -> Loader:
    return open_loader("folder", source, plan, options, batch_size=batch_size, shuffle=shuffle)


def joined(batches: Iterable[Batch]) -> tuple[NDArray, NDArray, NDArray]:
    """Views (M, V, S, S, 3), index (M,) and label (M,) of an epoch."""
    parts = [(batch.views.numpy(), batch.index.numpy(), batch.label.numpy()) for batch in batches]
    views, index, label = (np.concatenate(column) for column in zip(*parts, strict=True))
    return views, index, label


def assert_views(views: NDArray, index: NDArray, source: ImageFolder, plan: Plan, epoch: int) -> None:
    """Every view is the plan's window of the image as Pillow decodes it."""
    for row, position in zip(views, index.tolist(), strict=True):
        with Image.open(source.root / source.paths[position]) as image:
            pixels = np.array(image.convert("RGB"))
        windows = plan.windows(epoch, np.array([position]), np.array([pixels.shape[:2]]))
        np.testing.assert_array_equal(row, crop_resize(pixels, windows[0], plan.size))


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("saga-fast")]


@pytest.mark.parametrize(
    "plan",
    [
        CROPS,
        CropPlan(size=7, seed=1, num_views=3, table=make_table(N)),
        CropPlan(size=SIZE, seed=1, table=make_table(N), views="mixed", min_side=0.5),
        CropPlan(size=SIZE, seed=1, table=make_table(N), views="union"),
        WholePlan(size=SIZE),
    ],
    ids=["plain", "att", "mixed", "union", "whole"],
)
@pytest.mark.parametrize("epoch", [0, 3])
def test_views_are_the_plans_windows(source: ImageFolder, plan: Plan, epoch: int) -> None:
    loader = open_source(source, plan, shuffle=True)
    loader.set_epoch(epoch)
    views, index, _ = joined(loader)
    assert views.shape == (N, plan.num_views, plan.size, plan.size, 3)
    assert_views(views, index, source, plan, epoch)


def test_batches_are_as_described(source: ImageFolder) -> None:
    for batch in open_source(source, batch_size=9):
        assert [str(tensor.dtype) for tensor in (batch.views, batch.index, batch.label)] == [
            "torch.uint8",
            "torch.int64",
            "torch.int64",
        ]
        assert batch.views.is_contiguous()
        assert batch.label.tolist() == source.labels[batch.index.numpy()].tolist()


def test_images_without_classes_have_label_minus_1(root: Path) -> None:
    _, index, label = joined(open_source(str(root / "class 1")))
    assert index.tolist() == list(range(8))
    assert label.tolist() == [-1] * 8


def test_in_sequence_nothing_is_dropped_and_nothing_padded(source: ImageFolder) -> None:
    loader = open_source(source, WholePlan(size=SIZE), batch_size=5)
    batches = list(loader)
    assert [len(batch.index) for batch in batches] == [5, 5, 5, 5, 3]
    assert len(loader) == 5
    assert joined(batches)[1].tolist() == list(range(N))
    loader.set_epoch(1)
    assert joined(loader)[1].tolist() == list(range(N))


def test_shuffled_epochs_are_permutations_of_their_own(source: ImageFolder) -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        loader = open_source(source, options=replace(OPTIONS, seed=seed), shuffle=True)
        loader.set_epoch(epoch)
        return tuple(joined(loader)[1].tolist())

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert all(sorted(indices) == list(range(N)) for indices in orders.values())
    assert tuple(range(N)) not in orders.values()
    assert len(set(orders.values())) == len(orders)
    assert order(1, 2) == orders[1, 2]


def test_one_loader_over_epochs_is_a_fresh_one_per_epoch(source: ImageFolder) -> None:
    loader = open_source(source, shuffle=True)
    for epoch in (2, 0, 2):
        fresh = open_source(source, shuffle=True)
        loader.set_epoch(epoch)
        fresh.set_epoch(epoch)
        for ours, expected in zip(joined(loader), joined(fresh), strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "threads", "prefetch"),
    [(4, 1, 2), (4, 8, 2), (4, 2, 0), (4, 2, 50), (1, 2, 2), (N, 2, 2), (100, 3, 2), (4, None, 2)],
)
def test_threads_batches_and_prefetch_change_nothing(
    source: ImageFolder, batch_size: int, threads: int | None, prefetch: int, shuffle: bool
) -> None:
    options = LoaderOptions(batch_size=batch_size, threads=threads, prefetch=prefetch)
    plan = CropPlan(size=SIZE, seed=2, table=make_table(N), views="union")
    expected = joined(open_source(source, plan, shuffle=shuffle))
    for ours, theirs in zip(joined(open_source(source, plan, options, shuffle=shuffle)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shuffle", [False, True])
def test_drop_last_drops_the_batch_that_is_not_full(source: ImageFolder, shuffle: bool) -> None:
    options = replace(OPTIONS, drop_last=True)
    loader = open_source(source, options=options, batch_size=5, shuffle=shuffle)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    assert all(len(batch.index) == 5 for batch in batches)
    everything = joined(open_source(source, batch_size=5, shuffle=shuffle))[1]
    np.testing.assert_array_equal(joined(batches)[1], everything[:20])
    assert len(list(open_source(source, options=options, batch_size=N))) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (LoaderOptions(batch_size=0), "batch_size"),
        (LoaderOptions(threads=0), "threads"),
        (LoaderOptions(prefetch=-1), "prefetch"),
        (LoaderOptions(batch_size=N + 1, drop_last=True), f"{N} images"),
    ],
)
def test_values_out_of_range_are_refused(source: ImageFolder, options: LoaderOptions, named: str) -> None:
    with pytest.raises(SagaError, match=named):
        open_source(source, options=options)


def test_unknown_engines_and_missing_folders_are_refused(source: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=r"'folders'.*folder"):
        open_loader("folders", source, CROPS, batch_size=1)
    with pytest.raises(SagaError, match="missing"):
        open_source(tmp_path / "missing")


def test_plan_and_epoch_are_taken_by_the_next_iteration(source: ImageFolder) -> None:
    loader = open_source(source, options=replace(OPTIONS, prefetch=1), batch_size=6, shuffle=True)
    old = joined(open_source(source, shuffle=True, batch_size=6))
    running = iter(loader)
    batches = [next(running)]
    new_plan = CropPlan(size=9, seed=5, num_views=1, table=make_table(N))
    loader.set_plan(new_plan)
    loader.set_epoch(4)
    batches.extend(running)
    for ours, expected in zip(joined(batches), old, strict=True):  # the epoch under way stays itself
        np.testing.assert_array_equal(ours, expected)
    views, index, _ = joined(loader)
    assert sorted(index.tolist()) == list(range(N))
    assert_views(views, index, source, new_plan, 4)


def test_a_new_box_table_moves_the_crops(source: ImageFolder) -> None:
    loader = open_source(source, shuffle=True)
    for renewal in range(3):
        plan = CropPlan(size=SIZE, seed=5, table=make_table(N, seed=renewal))
        loader.set_plan(plan)
        loader.set_epoch(renewal)
        views, index, _ = joined(loader)
        assert_views(views, index, source, plan, renewal)


@pytest.mark.parametrize(("shuffle", "drop_last"), [(False, False), (True, False), (True, True)])
def test_an_epoch_may_be_entered_at_any_batch(source: ImageFolder, shuffle: bool, drop_last: bool) -> None:
    loader = open_source(source, options=replace(OPTIONS, drop_last=drop_last), shuffle=shuffle)
    loader.set_epoch(3)
    whole = list(loader)
    for start in range(len(whole) + 2):
        loader.set_epoch(3, start)
        tail = list(loader)
        assert len(tail) == max(len(whole) - start, 0)
        for ours, expected in zip(tail, whole[start:], strict=True):
            assert ours.index.tolist() == expected.index.tolist()
            np.testing.assert_array_equal(ours.views.numpy(), expected.views.numpy())
    loader.set_epoch(3)
    assert len(list(loader)) == len(whole)
    with pytest.raises(ValueError, match="-1"):
        loader.set_epoch(3, -1)


OTHER_TABLES = [make_table(N, dataset="23-0123456789abcdef"), make_table(N - 1), make_table(N + 1)]


@pytest.mark.parametrize("table", OTHER_TABLES, ids=["other data set", "too short", "too long"])
def test_a_table_of_another_data_set_is_refused(source: ImageFolder, table: BoxTable) -> None:
    named = [table.metadata["dataset"], source.fingerprint] if table.metadata else [f"{len(table)} rows", f"{N} images"]
    with pytest.raises(SagaError) as error:
        open_source(source, CropPlan(size=SIZE, seed=5, table=table))
    assert all(part in str(error.value) for part in named)
    open_source(source, CropPlan(size=SIZE, seed=5, table=make_table(N, dataset=source.fingerprint)))


@pytest.mark.parametrize("table", OTHER_TABLES, ids=["other data set", "too short", "too long"])
def test_set_plan_refuses_a_table_of_another_data_set(source: ImageFolder, table: BoxTable) -> None:
    loader = open_source(source)
    with pytest.raises(SagaError):
        loader.set_plan(CropPlan(size=SIZE, seed=5, table=table))
    assert loader.plan == CROPS


def test_stopping_early_leaves_no_thread_and_the_loader_usable(source: ImageFolder) -> None:
    loader = open_source(source, batch_size=2, shuffle=True)
    expected = joined(loader)
    for stop in (1, 3):
        for number, _ in enumerate(loader, 1):
            assert engine_threads()
            if number == stop:
                break
        assert not engine_threads()
    for ours, theirs in zip(joined(loader), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not engine_threads()


def test_an_exception_in_the_loop_leaves_no_thread(source: ImageFolder) -> None:
    loader = open_source(source, batch_size=2)
    with pytest.raises(ZeroDivisionError):
        for batch in loader:
            len(batch.index) / 0
    assert not engine_threads()
    assert len(joined(loader)[1]) == N


def test_an_exception_in_a_thread_reaches_the_caller(source: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: ImageFolder, index: int) -> FileRange:
        raise ZeroDivisionError(index)

    loader = open_source(source, batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "file_range", fail)
        with pytest.raises(ZeroDivisionError):
            next(iter(loader))
    assert not engine_threads()
    assert len(joined(loader)[1]) == N  # nothing was taken for a bad image


def test_two_iterations_at_once_do_not_disturb_each_other(source: ImageFolder) -> None:
    loader = open_source(source, shuffle=True)
    expected = joined(loader)
    pairs = list(zip(loader, loader, strict=True))
    for side in range(2):
        for ours, theirs in zip(joined(pair[side] for pair in pairs), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetch_bounds_the_batches_in_flight(
    source: ImageFolder, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    decoded = threading.Semaphore(0)  # counts images, without a race
    file_range = ImageFolder.file_range

    def count(source: ImageFolder, index: int) -> FileRange:
        decoded.release()
        return file_range(source, index)

    monkeypatch.setattr(ImageFolder, "file_range", count)
    batches = iter(open_source(source, options=replace(OPTIONS, prefetch=prefetch), batch_size=3))
    for taken in range(1, 4):
        next(batches)
        # The batches taken, and those ahead, are decoded without being asked for ...
        for _ in range(3 * (1 + prefetch) if taken == 1 else 3):
            assert decoded.acquire(timeout=30)
        # ... and not one image more, however long the caller takes.
        time.sleep(0.05)
        assert not decoded.acquire(blocking=False)


def test_a_batch_may_be_written_to(source: ImageFolder) -> None:
    loader = open_source(source)
    expected = joined(loader)
    for batch in loader:
        for tensor in (batch.views, batch.index, batch.label):
            tensor.fill_(77)
    for ours, theirs in zip(joined(loader), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
