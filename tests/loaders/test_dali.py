"""The DALI engine yields what the folder engine yields, whatever the threads, the batch size and the prefetch."""

import io
import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from saga_fast.loaders import Batch, BoxTable, CropPlan, ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.dali.decoder import Decoder
from saga_fast.loaders.dali.engine import DaliLoader
from saga_fast.loaders.decode import Pixels, decode_image
from saga_fast.loaders.encoded import FileRange, read_images
from saga_fast.loaders.jpeg import jpeg_sizes
from saga_fast.loaders.plan import Plan

NDArray = npt.NDArray[Any]
N = 60
SIZE = 24
LEVELS = 0
"""Both decode with libjpeg-turbo and crop with one kernel. A GPU's decoder may be a level off."""


def encode(number: int) -> tuple[bytes, str]:
    """Image ``number``, whose size is odd, in the formats and colour modes that data sets have; and its ending."""
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(1, 150, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("RGB", "JPEG", {"subsampling": 2}),
        ("RGB", "JPEG", {"subsampling": 0, "quality": 95}),
        ("RGB", "JPEG", {"subsampling": 1, "progressive": True}),
        ("RGB", "JPEG", {"exif": exif.tobytes()}),
        ("RGB", "JPEG", {"restart_marker_rows": 1}),
        ("L", "JPEG", {}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("CMYK", "JPEG", {}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {}),
    ]
    mode, kind, options = kinds[number % len(kinds)]
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (height, width), np.uint16))
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    junk = b"\0\0junk" if number == 12 else b""  # behind a JPEG's end
    return buffer.getvalue() + junk, kind.lower()


OWN = sum(number % 12 >= 6 for number in range(N)) + 1  # what DALI does not get: six kinds, and the one with junk


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """60 images in three classes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(N):
        data, ending = encode(number)
        path = root / f"class {number % 3}" / f"{number:02}.{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return ImageFolder(root)


def make_table(seed: int = 0) -> BoxTable:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 0.7, (N, 2))
    boxes = np.concatenate([near, rng.uniform(0.3, 1, (N, 2)) * (1 - near)], 1).astype(np.float32)
    return BoxTable(boxes, np.ones(N, np.bool_), np.zeros(N, np.int32), np.zeros(N, np.float32))


CROPS = CropPlan(size=SIZE, seed=5, table=make_table())
OPTIONS = LoaderOptions(batch_size=7, threads=2)


def open_source(
    source: ImageFolder,
    plan: Plan = CROPS,
    options: LoaderOptions = OPTIONS,
    *,
    engine: str = "dali",
    batch_size: int | None = None,
    shuffle: bool | None = None,
) -> Loader:
    return open_loader(engine, source, plan, options, batch_size=batch_size, shuffle=shuffle)


def assert_same(ours: Iterable[Batch], expected: Iterable[Batch]) -> None:
    for batch, other in itertools.zip_longest(ours, expected):
        assert batch.index.tolist() == other.index.tolist()
        assert batch.label.tolist() == other.label.tolist()
        np.testing.assert_allclose(batch.views.int(), other.views.int(), rtol=0, atol=LEVELS)
        assert (batch.views.dtype, batch.views.shape) == (other.views.dtype, other.views.shape)


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("saga-fast")]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every pipeline that is built."""
    counted: list[int] = []
    build = DaliLoader._build

    def count(loader: DaliLoader) -> Decoder:
        counted.append(1)
        return build(loader)

    monkeypatch.setattr(DaliLoader, "_build", count)
    return counted


@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_are_the_folder_engines(source: ImageFolder, builds: list[int], shuffle: bool) -> None:
    plans: list[Plan] = [
        CropPlan(size=SIZE, seed=5),
        CROPS,
        CropPlan(size=SIZE, seed=5, table=make_table(1)),  # the table alone is swapped
        CropPlan(size=SIZE, seed=5, table=make_table(2), views="mixed", min_side=0.5),
        CropPlan(size=SIZE, seed=5, table=make_table(2), views="union"),
        CropPlan(size=33, seed=1, num_views=3, table=make_table(3)),
        WholePlan(size=40),
        CROPS,
    ]
    loaders = [open_source(source, engine=engine, shuffle=shuffle) for engine in ("dali", "folder")]
    for epoch, plan in enumerate(plans):
        for loader in loaders:
            loader.set_plan(plan)
            loader.set_epoch(epoch)
        assert_same(*loaders)
    assert len(builds) == 1  # whatever the plan


def test_dali_decodes_what_it_decodes_as_we_do(source: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def count(data: bytes, max_pixels: int) -> Pixels:
        decoded.append(len(data))
        return decode_image(data, max_pixels)

    monkeypatch.setattr("saga_fast.loaders.decoded.decode_image", count)
    assert sum(len(batch.index) for batch in open_source(source)) == N
    assert len(decoded) == OWN


@pytest.mark.parametrize(
    ("batch_size", "threads", "prefetch"),
    [(7, 1, 1), (7, 5, 2), (7, 2, 0), (7, 2, 30), (1, 2, 2), (N, 2, 2), (100, 2, 0)],
)
def test_threads_batches_and_prefetch_change_nothing(
    source: ImageFolder, batch_size: int, threads: int, prefetch: int
) -> None:
    options = LoaderOptions(batch_size=batch_size, threads=threads, prefetch=prefetch, shuffle=True)
    assert_same(open_source(source, options=options), open_source(source, options=options, engine="folder"))


def test_the_last_batch_is_partial_or_dropped(source: ImageFolder) -> None:
    assert [len(batch.index) for batch in open_source(source, batch_size=25)] == [25, 25, 10]
    options = replace(OPTIONS, batch_size=25, shuffle=True, drop_last=True)
    loader = open_source(source, options=options)
    assert [len(batch.index) for batch in loader] == [25, 25]
    assert_same(loader, open_source(source, options=options, engine="folder"))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_may_be_entered_at_any_batch(source: ImageFolder, builds: list[int], prefetch: int) -> None:
    loader = open_source(source, options=replace(OPTIONS, prefetch=prefetch), shuffle=True)
    loader.set_epoch(3)
    whole = list(loader)
    for start in (0, 1, 5, len(whole) - 1, len(whole), len(whole) + 1):
        loader.set_epoch(3, start)
        assert_same(loader, whole[start:])
    assert len(builds) == 1


def test_plan_and_epoch_are_taken_by_the_next_iteration(source: ImageFolder) -> None:
    loader = open_source(source, shuffle=True)
    expected = list(loader)
    running = iter(loader)
    batches = [next(running)]
    loader.set_plan(CropPlan(size=9, seed=5, num_views=1, table=make_table(1)))
    loader.set_epoch(4)
    batches.extend(running)
    assert_same(batches, expected)
    other = open_source(source, loader.plan, engine="folder", shuffle=True)
    other.set_epoch(4)
    assert_same(loader, other)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_stopping_early_leaves_no_thread_and_the_loader_usable(
    source: ImageFolder, builds: list[int], prefetch: int
) -> None:
    loader = open_source(source, options=replace(OPTIONS, prefetch=prefetch), batch_size=4, shuffle=True)
    expected = list(loader)
    for stop in (1, 2, 5):
        for number, _ in enumerate(loader, 1):
            assert engine_threads()
            if number == stop:
                break
        assert not engine_threads()
        assert_same(loader, expected)
    with pytest.raises(ZeroDivisionError):
        for batch in loader:
            len(batch.index) / 0
    assert not engine_threads()
    assert_same(loader, expected)
    assert len(builds) == 1


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_in_a_thread_reaches_the_caller(
    source: ImageFolder, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    file_range = ImageFolder.file_range

    def fail(source: ImageFolder, index: int) -> FileRange:
        if index == 30:
            raise ZeroDivisionError
        return file_range(source, index)

    loader = open_source(source, options=replace(OPTIONS, prefetch=prefetch))
    expected = list(loader)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "file_range", fail)
        with pytest.raises(ZeroDivisionError):
            list(loader)
    assert not engine_threads()
    assert not loader.bad  # nothing was taken for a bad image
    assert_same(loader, expected)


def test_two_iterations_and_two_loaders_at_once_do_not_disturb_each_other(source: ImageFolder) -> None:
    loader = open_source(source, shuffle=True)
    other = open_source(source, options=replace(OPTIONS, prefetch=0), shuffle=True)
    expected = list(loader)
    for batches in zip(*zip(loader, loader, other, strict=True), strict=True):
        assert_same(batches, expected)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetch_bounds_the_batches_in_flight(
    source: ImageFolder, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    read = threading.Semaphore(0)  # counts images, without a race
    file_range = ImageFolder.file_range

    def count(source: ImageFolder, index: int) -> FileRange:
        read.release()
        return file_range(source, index)

    jpegs = ImageFolder(source.root)  # of those that DALI takes: the others are read a second time
    sizes = jpeg_sizes(read_images(source, np.arange(len(source))))
    jpegs.paths = [path for path, size in zip(source.paths, sizes, strict=True) if size.all()]
    monkeypatch.setattr(ImageFolder, "file_range", count)
    options = replace(OPTIONS, batch_size=2, prefetch=prefetch)
    batches = iter(open_source(jpegs, CropPlan(size=SIZE, seed=5), options))
    for taken in range(1, 4):
        next(batches)
        # The batches taken, those ahead, and one more that is read while they are decoded, come without being asked
        # for ...
        for _ in range(2 * (1 + prefetch + (prefetch > 0)) if taken == 1 else 2):
            assert read.acquire(timeout=30)
        # ... and not one image more, however long the caller takes.
        time.sleep(0.05)
        assert not read.acquire(blocking=False)


def test_batches_are_the_callers_to_keep_and_to_write_to(source: ImageFolder) -> None:
    loader = open_source(source)
    expected = [batch.views.clone() for batch in loader]
    kept = list(loader)
    for batch in loader:
        assert batch.views.is_contiguous()
        for tensor in (batch.views, batch.index, batch.label):
            tensor.fill_(77)
    del batch
    list(loader)
    for batch, views in zip(kept, expected, strict=True):
        assert torch.equal(batch.views, views)


def test_what_a_gpu_crops_is_merged_alike(source: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the GPU's way but the GPU: DALI's tensors through dlpack, the caller's thread, the rows that are ours."""

    def without_gpu(**options: Any) -> Decoder:
        return Decoder(**(options | {"gpu": None, "decode_on_gpu": False}))

    monkeypatch.setattr("saga_fast.loaders.dali.engine.Decoder", without_gpu)
    cpu = open_source(source, shuffle=True)
    gpu = DaliLoader(source, CROPS, replace(cpu.options, crop="gpu"), cpu.bad)
    assert_same(gpu, open_source(source, engine="folder", shuffle=True))
    batches = iter(gpu)
    next(batches)
    assert not any("driver" in name for name in engine_threads())
    del batches
