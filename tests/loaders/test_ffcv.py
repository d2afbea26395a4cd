"""The ffcv engine: the folder engine's batches, from a packed file.

FFCV is imported in fixtures and tests only: where it is missing, they fail with the line that installs it.
"""

import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_images import CROPS, OPTIONS, PLACES, SIZE, N, joined, make_folder, open_beton
from PIL import Image
from same_batches import assert_same_batches

from saga_fast.cli import main
from saga_fast.loaders import BoxTable, CropPlan, LoaderOptions, Place, Plan, WholePlan, open_loader
from saga_fast.loaders.engines import require_engine


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    require_engine("ffcv")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where what is packed as raw pixels, as JPEG, and as 4:2:0 planes comes from."""
    root = tmp_path_factory.mktemp("images")
    return {
        "raw": make_folder(root / "raw", (".jpg", ".png", ".webp", ".bmp")),
        "jpg": make_folder(root / "jpg", (".jpg",)),
        "yuv420": make_folder(root / "yuv420", (".jpg",), subsampling=2),
    }


@pytest.fixture(scope="module")
def packed(folders: dict[str, Path]) -> dict[str, Path]:
    """The .beton of each folder."""
    for mode, folder in folders.items():
        assert main(["pack", str(folder), f"{folder}.beton", "--mode", mode, "--workers", "2"]) == 0
    return {mode: Path(f"{folder}.beton") for mode, folder in folders.items()}


def make_table(n: int, *, seed: int = 0) -> BoxTable:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 0.7, (n, 2))
    boxes = np.concatenate([near, rng.uniform(0.3, 1, (n, 2)) * (1 - near)], 1).astype(np.float32)
    return BoxTable(boxes, np.ones(n, np.bool_), np.zeros(n, np.int32), np.zeros(n, np.float32))


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("saga-fast")]


PLANS: dict[str, Callable[[int], Plan]] = {
    "plain": lambda _: CROPS,
    "att": lambda seed: CropPlan(size=7, seed=1, num_views=3, table=make_table(N, seed=seed)),
    "mixed": lambda seed: CropPlan(size=SIZE, seed=1, table=make_table(N, seed=seed), views="mixed", min_side=0.5),
    "union": lambda seed: CropPlan(size=SIZE, seed=1, table=make_table(N, seed=seed), views="union"),
    "whole": lambda _: WholePlan(size=SIZE),
}


@pytest.mark.parametrize("crop", PLACES)
@pytest.mark.parametrize("mode", ["raw", "jpg", "yuv420"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_batches_are_the_folder_engines(
    folders: dict[str, Path], packed: dict[str, Path], mode: str, plan: Callable[[int], Plan], crop: Place
) -> None:
    # JPEGs are stored as they are and decoded by the same rules, and planes lose nothing of a 4:2:0 JPEG or a grey one:
    # all modes are equal to the byte.
    shuffle = mode == "raw"
    ours = open_beton(packed[mode], plan(0), replace(OPTIONS, crop=crop), shuffle=shuffle)
    expected = open_loader("folder", folders[mode], plan(0), OPTIONS, shuffle=shuffle)
    for epoch in (0, 1):  # the second with another table
        for loader in (ours, expected):
            loader.set_plan(plan(epoch))
            loader.set_epoch(epoch)
        assert_same_batches(ours, expected)


def test_cropping_for_a_gpu_without_one_is_said_once(packed: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    loader = open_beton(packed["raw"], options=replace(OPTIONS, crop="gpu"))
    list(loader)
    list(loader)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without a GPU" in caplog.text
    caplog.clear()
    open_beton(packed["raw"])
    assert not caplog.records


def test_images_of_any_sizes_share_a_batch(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for number, size in enumerate([(30, 20), (4000, 10), (17, 32), (10, 4000), (31, 31), (16, 16)]):
        Image.new("RGB", size, (number, 0, 0)).save(root / f"{number}.png")
    assert main(["pack", str(root), str(tmp_path / "x.beton"), "--mode", "raw"]) == 0
    loader = open_beton(tmp_path / "x.beton", WholePlan(size=3), replace(OPTIONS, crop="gpu"))
    (batch,) = loader
    assert batch.index.tolist() == list(range(6))
    for number in range(6):
        assert set(batch.views[number, 0, :, :, 0].flatten().tolist()) == {number}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "threads", "prefetch"), [(8, 1, 2), (8, 9, 2), (8, 2, 0), (8, 2, 50), (1, 2, 2), (100, 2, 2)]
)
def test_threads_batches_and_prefetch_change_nothing(
    packed: dict[str, Path], batch_size: int, threads: int, prefetch: int, shuffle: bool
) -> None:
    options = LoaderOptions(batch_size=batch_size, threads=threads, prefetch=prefetch)
    plan = CropPlan(size=SIZE, seed=2, table=make_table(N), views="union")
    expected = joined(open_beton(packed["jpg"], plan, shuffle=shuffle))
    for ours, theirs in zip(joined(open_beton(packed["jpg"], plan, options, shuffle=shuffle)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_in_sequence_nothing_is_dropped_and_nothing_padded(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["raw"], WholePlan(size=SIZE), batch_size=16)
    batches = list(loader)
    assert [len(batch.index) for batch in batches] == [16, 16, 16, 12]
    assert len(loader) == 4
    assert joined(batches)[1].tolist() == list(range(N))
    assert all(batch.views.is_contiguous() for batch in batches)


def test_drop_last_drops_the_batch_that_is_not_full(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["raw"], options=replace(OPTIONS, drop_last=True), batch_size=16, shuffle=True)
    batches = list(loader)
    assert len(loader) == 3
    assert [len(batch.index) for batch in batches] == [16, 16, 16]
    everything = joined(open_beton(packed["raw"], batch_size=16, shuffle=True))[1]
    assert joined(batches)[1].tolist() == everything[:48].tolist()
    assert sorted(everything.tolist()) == list(range(N))
    assert everything.tolist() != list(range(N))


def test_plan_and_epoch_are_taken_by_the_next_iteration(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["jpg"], options=replace(OPTIONS, prefetch=1), shuffle=True)
    old = list(open_beton(packed["jpg"], shuffle=True))
    running = iter(loader)
    batches = [next(running)]
    plan = CropPlan(size=9, seed=5, num_views=1, table=make_table(N))
    loader.set_plan(plan)
    loader.set_epoch(4)
    batches.extend(running)
    assert_same_batches(batches, old)  # the epoch under way stays itself
    fresh = open_beton(packed["jpg"], plan, shuffle=True)
    fresh.set_epoch(4)
    assert_same_batches(loader, fresh)


@pytest.mark.parametrize("crop", PLACES)
def test_an_epoch_can_be_entered_at_any_batch(packed: dict[str, Path], crop: Place) -> None:
    loader = open_beton(packed["jpg"], options=replace(OPTIONS, crop=crop), shuffle=True)
    loader.set_epoch(3)
    expected = list(loader)
    loader.set_epoch(3, start_batch=5)
    assert_same_batches(loader, expected[5:])


def test_two_iterations_at_once_do_not_disturb_each_other(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["jpg"], shuffle=True)
    expected = list(loader)
    pairs = list(zip(loader, loader, strict=True))
    for side in range(2):
        assert_same_batches([pair[side] for pair in pairs], expected)


def test_stopping_early_leaves_no_thread_and_the_loader_usable(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["jpg"], batch_size=2, shuffle=True)
    expected = list(loader)
    for stop in (1, 3):
        for number, _ in enumerate(loader, 1):
            assert engine_threads()
            if number == stop:
                break
        assert not engine_threads()
    with pytest.raises(ZeroDivisionError):
        for batch in loader:
            len(batch.index) / 0
    assert not engine_threads()
    assert_same_batches(loader, expected)
    assert not engine_threads()


def test_an_exception_in_a_thread_reaches_the_caller(packed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_fast.loaders.ffcv import engine

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError(len(arguments))

    loader = open_beton(packed["jpg"])
    with monkeypatch.context() as patch:
        patch.setattr(engine, "decode_and_crop", fail)
        with pytest.raises(ZeroDivisionError):
            next(iter(loader))
    assert not engine_threads()
    assert len(joined(loader)[1]) == N


def test_a_batch_stays_valid_and_may_be_written_to(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["jpg"], options=replace(OPTIONS, prefetch=0), batch_size=4)
    held = list(loader)
    copies = [batch.views.clone() for batch in held]
    for batch in loader:
        for tensor in (batch.views, batch.index, batch.label):
            tensor.fill_(77)
    assert all((batch.views == copy).all() for batch, copy in zip(held, copies, strict=True))
    assert_same_batches(loader, held)


def test_nothing_is_compiled_for_a_table_a_plan_or_a_loader(packed: dict[str, Path]) -> None:
    from saga_fast.loaders.ffcv.decoder import decode_and_crop, decode_whole

    for seed, (mode, path) in enumerate(packed.items()):
        for crop in PLACES:
            options = LoaderOptions(batch_size=7 + seed, shuffle=mode == "raw", crop=crop, threads=1 + seed)
            loader = open_beton(path, options=options)
            for epoch, plan in enumerate((CROPS, *(make(seed) for make in PLANS.values()))):
                loader.set_plan(plan)
                loader.set_epoch(epoch)
                list(loader)
    functions: list[Any] = [decode_and_crop, decode_whole]
    assert [len(function.signatures) for function in functions] == [1, 1]


def test_tables_are_not_kept(packed: dict[str, Path]) -> None:
    loader = open_beton(packed["raw"])
    table = make_table(N)
    kept = weakref.ref(table)
    loader.set_plan(CropPlan(size=SIZE, seed=1, table=table))
    list(loader)
    loader.set_plan(CROPS)
    del table
    assert kept() is None


def test_more_records_than_16_bits_count(tmp_path: Path) -> None:
    from saga_fast.loaders.ffcv.beton import sidecar_path
    from saga_fast.loaders.ffcv.decoder import RAW
    from saga_fast.loaders.ffcv.pack import PackedImages, write_sidecar
    from saga_fast.loaders.ffcv.writer import BetonWriter

    count, gone = 70_000, 123
    path, paths = tmp_path / "many.beton", [f"a/{i:06}.png" for i in range(count)]
    with BetonWriter(path, count) as writer:
        for i in range(count):
            if i != gone:
                writer.add(index=i, label=i % 1000, mode=RAW, height=1, width=1, data=i.to_bytes(3, "little"))
        records = writer.finish()
    labels = [i % 1000 for i in range(count)]
    classes = [f"{i:03}" for i in range(1000)]
    images = PackedImages(paths=paths, labels=labels, classes=classes, bad={gone: "noise"}, options={})
    write_sidecar(sidecar_path(path), path, records, images)
    table = make_table(count)
    loader = open_beton(path, CropPlan(size=1, seed=0, table=table), batch_size=10_000, shuffle=True)
    views, index, label = joined(loader)
    levels = views.reshape(-1, 2, 3).astype(np.int64)
    np.testing.assert_array_equal(levels @ [1, 256, 65536], np.stack([index, index], 1))
    np.testing.assert_array_equal(label, index % 1000)
    assert sorted(index.tolist()) == [i for i in range(count) if i != gone]
