"""Files that cannot be decoded: listed, replaced or left out, never yielded, and too many of them stop the run."""

import io
import os
import threading
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
from saga_fast.loaders import (
    BadImages,
    Batch,
    BoxTable,
    CropPlan,
    ImageFolder,
    Loader,
    LoaderOptions,
    Plan,
    WholePlan,
    open_loader,
)

NDArray = npt.NDArray[Any]
N = 30
SIZE = 8
BAD = (0, 6, 7, 8, 21, 29)
GOOD = [index for index in range(N) if index not in BAD]
BOXES = np.tile(np.array([0.25, 0.25, 0.5, 0.5], np.float32), (N, 1))
BOXES[:, 0] = np.arange(N) / 60
TABLE = BoxTable(BOXES, np.ones(N, np.bool_), np.zeros(N, np.int32), np.zeros(N, np.float32))
CROPS = CropPlan(size=SIZE, seed=5, table=TABLE)
OPTIONS = LoaderOptions(batch_size=4, threads=2)


def pixels_of(index: int) -> NDArray:
    return np.random.default_rng(index).integers(0, 256, (20 + index, 31, 3), np.uint8)


def make_folder(root: Path, n: int = N, bad: Iterable[int] = BAD) -> Path:
    """n PNGs in one class; the bad ones are cut, empty, a web page, noise, or links to nowhere."""
    (root / "a").mkdir(parents=True)
    kinds = dict(zip(bad, ("cut", "empty", "html", "noise", "no target", "cut") * n, strict=False))
    for index in range(n):
        buffer = io.BytesIO()
        Image.fromarray(pixels_of(index)).save(buffer, "PNG")
        path, data = root / "a" / f"{index:02}.png", buffer.getvalue()
        contents = {"cut": data[:200], "empty": b"", "html": b"<html>404</html>", "noise": os.urandom(500)}
        if kinds.get(index) == "no target":
            path.symlink_to("nowhere.png")
        else:
            path.write_bytes(contents.get(kinds.get(index, ""), data))
    return root


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    return ImageFolder(make_folder(tmp_path_factory.mktemp("clean"), bad=()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    return ImageFolder(make_folder(tmp_path_factory.mktemp("corrupt")))


def open_source(
    source: ImageFolder,
    options: LoaderOptions = OPTIONS,
    *,
    plan: Plan = CROPS,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    bad: BadImages | None = None,
) -> Loader:
    if bad is None:
        bad = BadImages(source, max_fraction=0.5)
    return open_loader("folder", source, plan, options, batch_size=batch_size, shuffle=shuffle, bad=bad)


def indices_of(batches: Iterable[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.index.tolist()]


def assert_views(batches: Iterable[Batch], epoch: int) -> None:
    for batch in batches:
        for row, index in zip(batch.views.numpy(), batch.index.tolist(), strict=True):
            pixels = pixels_of(index)
            windows = CROPS.windows(epoch, np.array([index]), np.array([pixels.shape[:2]]))
            np.testing.assert_array_equal(row, crop_resize(pixels, windows[0], SIZE))


@pytest.mark.parametrize(("batch_size", "threads", "prefetch"), [(4, 2, 2), (4, 7, 2), (N, 2, 2), (4, 2, 0)])
def test_in_sequence_bad_images_are_left_out_and_no_index_shifts(
    source: ImageFolder, batch_size: int, threads: int, prefetch: int
) -> None:
    loader = open_source(source, LoaderOptions(batch_size=batch_size, threads=threads, prefetch=prefetch))
    for epoch in (0, 1):  # found on the way, then known
        loader.set_epoch(epoch)
        batches = list(loader)
        assert indices_of(batches) == GOOD
        assert_views(batches, epoch)
        assert loader.bad.indices.tolist() == list(BAD)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_batch_is_empty(source: ImageFolder, batch_size: int) -> None:
    # Images 6 to 8 fill one batch, or three.
    batches = list(open_source(source, batch_size=batch_size, plan=WholePlan(size=SIZE)))
    assert indices_of(batches) == GOOD
    assert all(len(batch.index) for batch in batches)


@pytest.mark.parametrize("drop_last", [False, True])
def test_shuffled_batches_keep_their_size_and_hold_no_bad_image(source: ImageFolder, drop_last: bool) -> None:
    loader = open_source(source, replace(OPTIONS, drop_last=drop_last), shuffle=True)
    batches = list(loader)
    assert [len(batch.index) for batch in batches] == [4] * 7 + [2] * (not drop_last)
    assert not set(BAD) & set(indices_of(batches))
    assert_views(batches, 0)  # a substitute is cropped with its own windows
    assert all(len(set(batch.index.tolist())) == len(batch.index) for batch in batches)
    assert all(batch.label.tolist() == [0] * len(batch.index) for batch in batches)


@pytest.mark.parametrize("epoch", [0, 5])
def test_only_the_bad_images_are_substituted(source: ImageFolder, clean: ImageFolder, epoch: int) -> None:
    loader, expected = open_source(source, shuffle=True), open_source(clean, shuffle=True)
    loader.set_epoch(epoch)
    expected.set_epoch(epoch)
    ours, theirs = indices_of(loader), indices_of(expected)
    assert [index for index, other in zip(ours, theirs, strict=True) if index == other] == [
        index for index in theirs if index not in BAD
    ]
    assert sum(index != other for index, other in zip(ours, theirs, strict=True)) == len(BAD)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_substitutes_are_drawn_for_each_place_and_epoch(
    source: ImageFolder, clean: ImageFolder, batch_size: int
) -> None:
    drawn = []
    for epoch in range(8):
        # A new list each time: the bad images of a known list are not in the order at all.
        loaders = [open_source(images, shuffle=True, batch_size=batch_size) for images in (source, clean)]
        for loader in loaders:
            loader.set_epoch(epoch)
        batches = list(loaders[0])
        assert all(len(set(batch.index.tolist())) == len(batch.index) for batch in batches)
        places = zip(indices_of(batches), indices_of(loaders[1]), strict=True)
        drawn.append([index for index, listed in places if index != listed])
        assert len(drawn[-1]) == len(BAD)
    # Drawn by chance from 24 good images: 5.4 different ones per epoch, 21 in all.
    assert sum(len(set(epoch)) for epoch in drawn) > 8 * 4.5
    assert len({index for epoch in drawn for index in epoch}) > 16


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 2), (8, 2), (2, 0), (2, 9), (5, 2)])
@pytest.mark.parametrize("batch_size", [4, 24])  # 24: as many as there are good images
def test_substitutes_depend_on_no_thread(source: ImageFolder, threads: int, prefetch: int, batch_size: int) -> None:
    changed = replace(OPTIONS, threads=threads, prefetch=prefetch)
    for epoch in range(4):
        loaders = [open_source(source, options, batch_size=batch_size, shuffle=True) for options in (OPTIONS, changed)]
        for loader in loaders:
            loader.set_epoch(epoch)
        for ours, expected in zip(*loaders, strict=True):
            assert ours.index.tolist() == expected.index.tolist()
            np.testing.assert_array_equal(ours.views.numpy(), expected.views.numpy())


def test_later_epochs_leave_them_out_and_keep_the_others_order(source: ImageFolder, clean: ImageFolder) -> None:
    loader, expected = open_source(source, shuffle=True), open_source(clean, shuffle=True)
    assert len(loader) == 8
    list(loader)
    assert len(loader) == 6
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        expected.set_epoch(epoch)
        batches = list(loader)
        assert indices_of(batches) == [index for index in indices_of(expected) if index not in BAD]
        assert_views(batches, epoch)


def test_a_shared_list_and_a_known_one_spare_the_search(source: ImageFolder) -> None:
    bad = BadImages(source, max_fraction=0.5)
    assert indices_of(open_source(source, bad=bad)) == GOOD
    for listed in (bad, BadImages(source, max_fraction=0.5, known=BAD)):
        loader = open_source(source, shuffle=True, bad=listed)
        assert len(loader) == 6
        assert sorted(indices_of(loader)) == GOOD
        assert listed.indices.tolist() == list(BAD)
        assert [index in listed for index in range(N)] == [index in BAD for index in range(N)]


def test_the_list_names_index_path_and_reason(source: ImageFolder, tmp_path: Path) -> None:
    loader = open_source(source, shuffle=True)  # found in another order than they are listed in
    loader.bad.write(tmp_path / "bad_images.txt")
    assert not (tmp_path / "bad_images.txt").exists()
    list(loader)
    loader.bad.write(tmp_path / "bad_images.txt")
    rows = [line.split("\t") for line in (tmp_path / "bad_images.txt").read_text(encoding="utf-8").splitlines()]
    assert [(int(index), path) for index, path, _ in rows] == [(index, f"a/{index:02}.png") for index in BAD]
    assert all(reason.strip() for _, _, reason in rows)
    assert "No such file" in rows[4][2]
    assert [path.name for path in tmp_path.iterdir()] == ["bad_images.txt"]


def test_the_list_names_files_whose_names_are_not_utf8(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", n=3, bad=())
    Path(os.fsdecode(os.fsencode(root) + b"/a/\xff.png")).write_bytes(b"noise")
    loader = open_source(ImageFolder(root), plan=WholePlan(size=SIZE))
    assert indices_of(loader) == [0, 1, 2]
    loader.bad.write(tmp_path / "bad_images.txt")
    assert (tmp_path / "bad_images.txt").read_bytes().startswith(b"3\ta/")


@pytest.mark.parametrize("shuffle", [False, True])
def test_too_many_stop_the_run(source: ImageFolder, shuffle: bool) -> None:
    with pytest.raises(SagaError) as error:
        list(open_source(source, shuffle=shuffle, bad=BadImages(source, max_fraction=5 / N)))
    message = str(error.value)
    assert "\n" not in message
    assert f"6 of {N} images" in message
    assert str(source.root) in message and any(source.paths[index] in message for index in BAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saga-fast")]
    enough = BadImages(source, max_fraction=6 / N)
    assert sorted(set(indices_of(open_source(source, shuffle=shuffle, bad=enough)))) == GOOD


def test_one_percent_is_the_default(tmp_path: Path) -> None:
    def read(n: int, bad: Iterable[int]) -> list[int]:
        folder = ImageFolder(make_folder(tmp_path / f"{n} {len(list(bad))}", n, bad))
        return indices_of(open_loader("folder", folder, WholePlan(size=2), LoaderOptions(threads=2), batch_size=50))

    assert read(100, [50]) == [index for index in range(100) if index != 50]
    for n, bad in ((100, [50, 51]), (99, [50])):
        with pytest.raises(SagaError, match=rf"{len(bad)} of {n} images"):
            read(n, bad)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_file_that_vanished_after_the_listing_is_bad(tmp_path: Path, shuffle: bool) -> None:
    folder = ImageFolder(make_folder(tmp_path / "images", bad=()))
    loader = open_source(folder, shuffle=shuffle)
    assert sorted(indices_of(loader)) == list(range(N))
    (folder.root / folder.paths[13]).unlink()
    seen = indices_of(loader)
    assert 13 not in seen
    assert len(seen) == N - (not shuffle)
    assert loader.bad.indices.tolist() == [13]
    assert sorted(indices_of(loader)) == [index for index in range(N) if index != 13]
