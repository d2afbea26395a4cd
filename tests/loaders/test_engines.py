"""All engines against each other: one seed, epoch and table give the same windows, and the same views to a level."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.loaders import (
    BoxTable,
    CropPlan,
    ImageFolder,
    Loader,
    LoaderOptions,
    Place,
    Plan,
    WholePlan,
    open_loader,
)
from saga_fast.loaders.decode import decode_image
from saga_fast.loaders.plan import MoreViews

NDArray = npt.NDArray[Any]
N = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 colour and grey JPEGs of odd sizes, smooth as photographs are; jpg mode would encode other formats anew."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(N):
        path = root / f"class {number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        image = coarse.resize((int(rng.integers(9, 120)), int(rng.integers(9, 120))), Image.Resampling.BICUBIC)
        image.convert("L" if number % 7 == 1 else "RGB").save(path, quality=95)
    return root


@pytest.fixture(scope="module")
def opened(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loader]:
    """Opens a way of reading the images: an engine, or one of its storage modes."""
    from saga_fast.loaders.ffcv.pack import PackOptions, pack

    folder = tmp_path_factory.mktemp("packed")
    for mode in ("raw", "jpg"):
        pack(ImageFolder(root), folder / f"{mode}.beton", PackOptions(mode=mode), workers=1)

    def open_way(way: str, plan: Plan, *, shuffle: bool = True) -> Loader:
        engine, _, mode = way.partition(" ")
        source = folder / f"{mode}.beton" if mode else root
        return open_loader(engine, source, plan, LoaderOptions(batch_size=16, shuffle=shuffle, threads=2))

    return open_way


def make_table(seed: int) -> BoxTable:
    rng = np.random.default_rng(seed)
    near = rng.uniform(0, 0.6, (N, 2))
    boxes = np.concatenate([near, rng.uniform(0.3, 1.0, (N, 2)) * (1 - near)], 1).astype(np.float32)
    return BoxTable(boxes, np.ones(N, np.bool_), np.zeros(N, np.int32), np.zeros(N, np.float32))


def epoch_of(loader: Loader) -> tuple[NDArray, NDArray, list[NDArray]]:
    """Index (M,), label (M,), and of each group of views (M, V, S, S, 3)."""
    batches = list(loader)
    groups = zip(*((batch.views, *batch.more) for batch in batches), strict=True)
    index, label = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("index", "label"))
    return index, label, [np.concatenate(list(group)) for group in groups]


WAYS = {"ffcv raw": 0, "ffcv jpg": 0, "dali": 1}
"""Levels that a view may be off the folder engine's."""


@pytest.mark.parametrize("way", WAYS)
def test_epochs_are_the_folder_engines(way: str, opened: Callable[..., Loader]) -> None:
    """Epoch 0 plain, then with a table, with another one, and centred in its boxes; views of two sizes in all."""
    more = (MoreViews(size=21, count=2, scale=(0.6, 1.0)),)
    plans = [
        CropPlan(size=16, seed=3, num_views=2, more=more),
        CropPlan(size=16, seed=3, num_views=2, more=more, table=make_table(1)),
        CropPlan(size=16, seed=3, num_views=2, more=more, table=make_table(2), views="mixed"),
        CropPlan(size=16, seed=3, num_views=2, more=more, table=make_table(2), crop="centred"),
    ]
    own, folder = opened(way, plans[0]), opened("folder", plans[0])
    for number, plan in enumerate(plans):
        found = []
        for loader in (own, folder):
            loader.set_plan(plan)
            loader.set_epoch(number)
            found.append(epoch_of(loader))
        (index, label, groups), (expected_index, expected_label, expected_groups) = found
        np.testing.assert_array_equal(index, expected_index)
        np.testing.assert_array_equal(label, expected_label)
        assert [group.shape[1:] for group in groups] == [(2, 16, 16, 3), (2, 21, 21, 3)]
        for group, expected in zip(groups, expected_groups, strict=True):
            assert np.abs(group.astype(int) - expected).max() <= WAYS[way]


@pytest.mark.parametrize("way", ["folder", *WAYS])
def test_views_of_the_second_group_are_its_own_windows(way: str, opened: Callable[..., Loader], root: Path) -> None:
    """Numbered on from the main views, with a scale of their own, and cropped to their own size."""
    from saga_fast.kernels import crop_resize, sample_windows

    plan = CropPlan(size=16, seed=3, num_views=1, more=(MoreViews(size=21, scale=(0.6, 1.0)),))
    source = ImageFolder(root)
    index, _, (main, second) = epoch_of(opened(way, plan, shuffle=False))
    assert index.tolist() == list(range(N))
    for number in (0, 4, 33):
        pixels = decode_image(source.read(number))
        key: dict[str, Any] = {"seed": 3, "epoch": 0, "indices": np.array([number]), "num_views": 2}
        for view, (group, scale) in enumerate(((main, (0.08, 1.0)), (second, (0.6, 1.0)))):
            whole = np.array([[0, 0, 1, 1]], np.float32)
            windows = sample_windows(whole, np.array([pixels.shape[:2]]), scale=scale, **key)
            expected = crop_resize(pixels, windows[0, view : view + 1], group.shape[2])
            assert np.abs(group[number].astype(int) - expected).max() <= WAYS.get(way, 0)


@pytest.mark.parametrize("way", ["folder", *WAYS])
def test_an_engine_enters_an_epoch_anywhere(way: str, opened: Callable[..., Loader]) -> None:
    loader = opened(way, CropPlan(size=8, seed=3))
    loader.set_epoch(1)
    index, _, (views,) = epoch_of(loader)
    loader.set_epoch(1, start_batch=2)
    tail, _, (tail_views,) = epoch_of(loader)
    np.testing.assert_array_equal(tail, index[32:])
    np.testing.assert_array_equal(tail_views, views[32:])


def test_a_gpus_decoder_that_does_not_work_is_said_aloud(
    images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``auto`` then decodes on the CPU; asked for by name it is an error. The loader only is made: there is no GPU."""

    def fail(device: torch.device) -> None:
        raise SagaError(f"nothing decodes on {device}")

    monkeypatch.setattr("saga_fast.loaders.device_images.check_nvjpeg", fail)
    source = images / "train"
    loader = open_loader("folder", source, WholePlan(size=8), LoaderOptions(device="cuda"), batch_size=4)
    assert (loader.options.decode, loader.options.crop) == ("cpu", "gpu")
    assert "nothing decodes on cuda; decoding on the CPU" in caplog.text
    with pytest.raises(SagaError, match="nothing decodes on cuda"):
        open_loader("folder", source, WholePlan(size=8), LoaderOptions(device="cuda", decode="gpu"), batch_size=4)
    monkeypatch.setattr("saga_fast.loaders.device_images.check_nvjpeg", lambda _: None)
    choices: list[tuple[Place, tuple[Place, Place]]] = [("auto", ("gpu", "gpu")), ("cpu", ("cpu", "cpu"))]
    for crop, places in choices:
        options = LoaderOptions(device="cuda", crop=crop)
        loader = open_loader("folder", source, WholePlan(size=8), options, batch_size=4)
        assert (loader.options.decode, loader.options.crop) == places


@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [
        ("threads", 0, "1 to 4096"),
        ("threads", 10**6, "1 to 4096"),
        ("prefetch", -1, "0 to 4096"),
        ("prefetch", 10**6, "0 to 4096"),
        ("batch_size", 0, "1 to 16777216"),
        ("batch_size", 2**40, "1 to 16777216"),
    ],
)
def test_options_out_of_range_start_no_thread(images: Path, option: str, value: int, limits: str) -> None:
    options = replace(LoaderOptions(), **{option: value})  # type: ignore[arg-type]
    with pytest.raises(SagaError, match=f"{option} must be in {limits}, got {value}"):
        open_loader("folder", images / "train", WholePlan(size=16), options)
