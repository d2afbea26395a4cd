"""Images that DALI cannot decode, or would decode without a word though they are broken: as in the folder engine."""

import io
import itertools
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, Batch, CropPlan, ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.dali import engine as dali_engine
from saga_fast.loaders.dali.decoder import Decoder
from saga_fast.loaders.dali.engine import DaliLoader
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.loaders.encoded import EncodedImages
from saga_fast.loaders.jpeg import jpeg_sizes
from saga_fast.loaders.plan import Plan

N = 30
CROPS = CropPlan(size=12, seed=5, scale=(0.05, 0.2))  # small ones: DALI stops long before an image's end


def make_jpeg(number: int, **options: Any) -> bytes:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((90 + number, 140), Image.Resampling.BICUBIC).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def breaking(kind: str, number: int) -> bytes:
    """A JPEG, broken in one way."""
    data = make_jpeg(number)
    broken = bytearray(data)
    if kind == "cut":
        return data[: len(data) * 3 // 4]
    if kind == "no end":
        return data[:-1]
    if kind == "zeros":  # the length that was announced, of which half came
        return data[: len(data) // 2] + bytes(len(data) // 2)
    if kind == "marker below":
        at = len(data) * 9 // 10
        return data[:at] + b"\xff\xc4\x00\x05\x00\x99\x99" + data[at:]
    if kind == "bomb":
        at = data.index(b"\xff\xc0")
        broken[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    if kind == "huffman":  # looks well, but no decoder takes it
        broken[data.index(b"\xff\xc4") + 5] = 0xFF
    whole = {"empty": b"", "html": b"<html>404</html>", "start alone": b"\xff\xd8", "ends alone": b"\xff\xd8\xff\xd9"}
    return whole.get(kind, bytes(broken))


KINDS = {
    0: "cut",
    1: "empty",
    7: "huffman",
    8: "zeros",
    9: "no end",
    15: "marker below",
    16: "bomb",
    20: "no target",
    21: "start alone",
    22: "ends alone",
    23: "html",
    29: "cut",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    root = tmp_path_factory.mktemp("corrupt")
    for number in range(N):
        path, kind = root / "a" / f"{number:02}.jpg", KINDS.get(number)
        path.parent.mkdir(exist_ok=True)
        if kind == "no target":
            path.symlink_to("nowhere.jpg")
        else:
            path.write_bytes(breaking(kind, number) if kind else make_jpeg(number, progressive=number % 2 == 1))
    return ImageFolder(root)


def open_source(
    source: ImageFolder,
    engine: str = "dali",
    plan: Plan = CROPS,
    *,
    batch_size: int = 4,
    prefetch: int = 2,
    shuffle: bool = False,
    max_fraction: float = 0.5,
) -> Loader:
    options = LoaderOptions(batch_size=batch_size, prefetch=prefetch, shuffle=shuffle, threads=2)
    return open_loader(engine, source, plan, options, bad=BadImages(source, max_fraction=max_fraction))


def assert_same(ours: Any, expected: Any) -> None:
    batch: Batch
    for batch, other in itertools.zip_longest(ours, expected):
        assert batch.index.tolist() == other.index.tolist()
        np.testing.assert_array_equal(batch.views, other.views)


@pytest.mark.parametrize("kind", sorted(set(KINDS.values()) - {"no target"}))
def test_every_kind_is_broken(kind: str) -> None:
    with pytest.raises(DecodeError):
        decode_image(breaking(kind, 3))
    assert jpeg_sizes(EncodedImages.of([breaking(kind, 3)])).all() == (kind == "huffman")  # only this one comes to DALI


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("batch_size", "prefetch"), [(4, 2), (1, 0), (40, 2)])
def test_epochs_are_the_folder_engines(source: ImageFolder, shuffle: bool, batch_size: int, prefetch: int) -> None:
    loader, expected = (
        open_source(source, engine, batch_size=batch_size, prefetch=prefetch, shuffle=shuffle)
        for engine in ("dali", "folder")
    )
    for epoch in range(3):  # found on the way, then known
        for each in (loader, expected):
            each.set_epoch(epoch)
        assert_same(loader, expected)
        assert loader.bad.indices.tolist() == sorted(KINDS)
    assert {index: loader.bad._reasons[index] for index in KINDS} == expected.bad._reasons


def test_what_dali_fails_at_is_said_and_not_tried_again(source: ImageFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loader = open_source(source)
        list(loader)
        assert [record.name for record in caplog.records] == ["saga_fast.loaders.dali.engine"]
        assert "Failed to decode sample" in caplog.text and "\n" not in caplog.records[0].getMessage()
        caplog.clear()
        list(loader)
    assert not caplog.records


def test_what_dali_alone_fails_at_is_decoded_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(make_jpeg(number))
    strange = (tmp_path / "6.jpg").read_bytes()

    # Windows below the image's end are what DALI will fail at.
    def sizes(files: EncodedImages, _: int) -> npt.NDArray[np.int64]:
        are_strange = np.array([files[n].tobytes() == strange for n in range(len(files))])
        return np.where(are_strange[:, None], (1400, 96), jpeg_sizes(files))

    monkeypatch.setattr(dali_engine, "jpeg_sizes", sizes)
    pipelines: list[int] = []
    build = DaliLoader._build

    def count(loader: DaliLoader) -> Decoder:
        pipelines.append(1)
        return build(loader)

    monkeypatch.setattr(DaliLoader, "_build", count)
    loader, expected = (
        open_source(ImageFolder(tmp_path), engine, WholePlan(size=9), batch_size=2) for engine in ("dali", "folder")
    )
    for _ in range(3):
        assert_same(loader, expected)
    assert not loader.bad
    assert len(caplog.records) == 1
    assert len(pipelines) == 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_too_many_stop_the_run(source: ImageFolder, shuffle: bool) -> None:
    loader = open_source(source, shuffle=shuffle, max_fraction=(len(KINDS) - 1) / N)
    with pytest.raises(SagaError, match=f"{len(KINDS)} of {N} images"):
        list(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saga-fast")]


def test_a_file_that_vanished_after_the_listing_is_bad(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(make_jpeg(number))
    folder = ImageFolder(tmp_path)
    loader = open_source(folder)
    assert sum(len(batch.index) for batch in loader) == 10
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "5.jpg").write_bytes(make_jpeg(7))  # nor is another image of another size a problem
    assert_same(loader, open_source(folder, "folder"))
    assert loader.bad.indices.tolist() == [3]


def test_changed_bytes_are_never_taken_that_decode_image_refuses() -> None:
    """Changed among the pixels of a baseline JPEG, that is: a broken header is one that DALI does not take either."""
    rng = np.random.default_rng(0)
    data = make_jpeg(0)
    pixels = data.index(b"\xff\xda") + 14
    taken = 0
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(pixels, len(data) - 2, 3):
            broken[at] = 0xFF if rng.random() < 0.1 else rng.integers(256)
        if jpeg_sizes(EncodedImages.of([bytes(broken)])).all():
            taken += 1
            decode_image(bytes(broken))
    assert 50 < taken < 250
