"""The folder engine where views are cropped on the device; on the CPU here, which is a device too."""

import io
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.kernels import crop_resize
from saga_fast.loaders import (
    BadImages,
    Batch,
    CropPlan,
    ImageFolder,
    Loader,
    LoaderOptions,
    Place,
    WholePlan,
    open_loader,
)
from saga_fast.loaders.batch import crop_batch
from saga_fast.loaders.decode import Pixels, decode_image
from saga_fast.loaders.device_images import InUse, decode_jpegs
from saga_fast.loaders.folder.engine import FolderLoader
from saga_fast.loaders.loader import ResolvedOptions

NDArray = npt.NDArray[Any]
CPU = torch.device("cpu")
N, SIZE = 30, 16
CROPS, WHOLE = CropPlan(size=SIZE, seed=5), WholePlan(size=SIZE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images, smooth as photographs are; two JPEGs among them are cut short, a PNG is empty."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(N):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        image = coarse.resize((int(rng.integers(3, 90)), int(rng.integers(3, 90))), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        png = number % 5 == 4
        image.convert("L" if number % 4 == 1 else "RGB").save(buffer, "PNG" if png else "JPEG", quality=95)
        data = {3: buffer.getvalue()[:150], 14: b"", 20: buffer.getvalue()[:150]}.get(number, buffer.getvalue())
        (root / f"{number:02}.{'png' if png else 'jpg'}").write_bytes(data)
    return root


def open_on_device(root: Path, *, decode: Place, shuffle: bool) -> Loader:
    """What :func:`open_loader` makes for a GPU, for the CPU, which it refuses."""
    source = ImageFolder(root)
    options = ResolvedOptions(batch_size=8, shuffle=shuffle, threads=2, device=CPU, decode=decode, crop="gpu")
    return FolderLoader(source, CROPS if shuffle else WHOLE, options, BadImages(source, max_fraction=0.2))


def joined(batches: Iterable[Batch]) -> tuple[NDArray, NDArray]:
    parts = [(batch.views.numpy(), batch.index.numpy()) for batch in batches]
    views, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    return views, index


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("decode", "levels"), [("cpu", 0), ("gpu", 2)])
def test_same_batches_as_cropped_by_threads(root: Path, decode: Place, levels: int, shuffle: bool) -> None:
    """Bad images and their substitutes too. Another decoder may round otherwise."""
    own = open_on_device(root, decode=decode, shuffle=shuffle)
    bad = BadImages(ImageFolder(root), max_fraction=0.2)
    plan = CROPS if shuffle else WHOLE
    other = open_loader("folder", root, plan, LoaderOptions(threads=2), batch_size=8, shuffle=shuffle, bad=bad)
    for epoch in (0, 1):
        own.set_epoch(epoch)
        other.set_epoch(epoch)
        views, index = joined(own)
        expected, expected_index = joined(other)
        np.testing.assert_array_equal(index, expected_index)
        assert np.abs(views.astype(int) - expected).max() <= levels
        assert own.bad.indices.tolist() == other.bad.indices.tolist() == [3, 14, 20]


def test_images_of_any_sizes_share_batches() -> None:
    """Each view is of its own image."""
    rng = np.random.default_rng(1)
    sizes = [(5, 300), (9, 11), (16, 16), (17, 16), (300, 200), (1, 1), (9, 16)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    windows = np.array([[[0, 0, h, w], [h // 2, w // 3, h - h // 2, w - w // 3]] for h, w in sizes], np.int32)
    views = crop_batch([torch.from_numpy(image) for image in images], windows, CROPS)
    for image, own, view in zip(images, windows, views, strict=True):
        np.testing.assert_array_equal(view.view(2, SIZE, SIZE, 3).numpy(), crop_resize(image, own, SIZE))


@pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")  # a loader's stream ignores it
def test_one_refused_jpeg_does_not_spoil_the_others(root: Path) -> None:
    files = [torch.frombuffer(bytearray((root / f"{n:02}.jpg").read_bytes()), dtype=torch.uint8) for n in (0, 1)]
    first, refused, second = decode_jpegs([files[0], torch.zeros(9, dtype=torch.uint8), files[1]], CPU)
    assert refused is None and first is not None and second is not None
    for image, name in ((first, "00.jpg"), (second, "01.jpg")):
        with Image.open(root / name) as stored:
            assert np.abs(image.numpy().astype(int) - np.asarray(stored.convert("RGB"))).max() <= 2
    assert decode_jpegs([], CPU) == []


def test_the_gpus_decoder_gets_only_what_it_surely_decodes_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not CMYK, nor RGB without a transform, nor what is cut short or has more pixels than allowed."""
    rng = np.random.default_rng(2)
    picture = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("colour", picture, {}),
        ("grey", picture.convert("L"), {}),
        ("progressive", picture, {"progressive": True}),
        ("cmyk", picture.convert("CMYK"), {}),
        ("rgb", picture, {"keep_rgb": True}),
        ("large", picture.resize((80, 60)), {}),
    ]
    for name, image, how in kinds:
        image.save(tmp_path / f"{name}.jpg", **how)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "colour.jpg").read_bytes()[:-40])
    given: list[bytes] = []

    def count(files: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor | None]:
        given.extend(file.numpy().tobytes() for file in files)
        return decode_jpegs(files, device)

    monkeypatch.setattr("saga_fast.loaders.device_images.decode_jpegs", count)
    source = ImageFolder(tmp_path)
    options = ResolvedOptions(batch_size=7, threads=2, device=CPU, decode="gpu", crop="gpu", max_pixels=40 * 30)
    loader = FolderLoader(source, WHOLE, options, BadImages(source, max_fraction=0.5))
    cpu = FolderLoader(source, WHOLE, replace(options, decode="cpu", crop="cpu"), BadImages(source, max_fraction=0.5))
    views, index = joined(loader)
    expected, expected_index = joined(cpu)
    np.testing.assert_array_equal(index, expected_index)
    assert np.abs(views.astype(int) - expected).max() <= 2
    assert loader.bad.indices.tolist() == cpu.bad.indices.tolist()
    names = {(tmp_path / f"{name}.jpg").read_bytes(): name for name in ("colour", "grey", "progressive")}
    assert sorted(names[data] for data in given) == ["colour", "grey", "progressive"]


def test_all_threads_decode_what_the_gpus_decoder_does_not_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(4):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{n}.png")
    both = threading.Barrier(2, timeout=20)  # broken if one thread decodes alone

    def meet(data: bytes, max_pixels: int) -> Pixels:
        both.wait()
        return decode_image(data, max_pixels)

    monkeypatch.setattr("saga_fast.loaders.folder.device.decode_image", meet)
    source = ImageFolder(tmp_path)
    options = ResolvedOptions(batch_size=4, threads=2, prefetch=0, device=CPU, decode="gpu", crop="gpu")
    views, _ = joined(FolderLoader(source, WHOLE, options, BadImages(source)))
    assert len(views) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoaderOptions(decode="gpu"), "decode: gpu needs a GPU, and this is device cpu"),
        (LoaderOptions(crop="gpu"), "crop: gpu needs a GPU, and this is device cpu"),
        (LoaderOptions(crop=cast(Place, "tpu")), "crop must be auto, cpu or gpu, got 'tpu'"),
        (LoaderOptions(decode="gpu", crop="cpu", device="cuda"), "crop must be auto or gpu, got 'cpu'"),
    ],
)
def test_places_that_do_not_work_are_refused(root: Path, options: LoaderOptions, message: str) -> None:
    with pytest.raises(SagaError, match=message):
        open_loader("folder", root, WHOLE, options)


def test_a_device_that_fails_is_not_a_refused_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding on the CPU from then on would hide it."""

    def fail(*_: object) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("saga_fast.loaders.device_images._decode", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        decode_jpegs([torch.zeros(9, dtype=torch.uint8)], CPU)


def test_no_image_is_kept_after_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Mock(**{"query.return_value": False})
    stream = Mock(**{"record_event.return_value": event})
    monkeypatch.setattr("torch.cuda.current_stream", lambda _: stream)
    in_use, images = InUse(), [torch.zeros(3), torch.zeros(4)]
    alive = [weakref.ref(image) for image in images]
    while images:
        in_use.keep(images.pop(), CPU)
    assert all(image() is not None for image in alive)
    in_use.drop()
    assert all(image() is None for image in alive)
    assert event.synchronize.call_count == 2
