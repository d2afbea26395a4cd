"""Listings: in memory, or mapped files that processes share; both are the same data set."""

import multiprocessing
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, ImageFolder, Shards, box_table, listing
from saga_fast.loaders.listing import Columns, Rows, make_listing


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAPPED_BYTES", 0)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for number in range(12):
        path = root / f"class {number % 3}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3 + number)).save(path)
    return root


def same(one: ImageFolder | Shards, two: ImageFolder | Shards) -> bool:
    facts = [(list(source.paths), source.labels.tolist(), source.classes, source.fingerprint) for source in (one, two)]
    return facts[0] == facts[1] and all(one.read(index) == two.read(index) for index in range(len(one)))


def blocks(count: int) -> list[Rows]:
    return [([f"{number}/{i}" for i in range(5)], {"label": np.full(5, number)}) for number in range(count)]


def no_classes(_: Columns) -> tuple[str, ...]:
    return ()


def test_small_listings_write_nothing(images: Path, cache: Path) -> None:
    assert len(ImageFolder(images)) == 12
    assert not cache.exists()


def test_a_mapped_folder_is_the_folder(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageFolder(images)
    monkeypatch.setattr(listing, "MAPPED_BYTES", 0)
    folder = ImageFolder(images)
    assert not folder.labels.flags.writeable  # mapped
    assert plain.labels.flags.writeable
    assert same(folder, plain)
    assert len(list((cache / "listings").glob("*/listing.json"))) == 1
    (images / "class 0" / "new.png").write_bytes(b"")
    assert len(ImageFolder(images)) == 13  # listed again, not taken from the files
    assert same(folder, plain)  # whose files were replaced


def test_mapped_tars_are_the_tars(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tars"
    root.mkdir()
    for name in ("class 0", "class 1", "class 2"):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            tar.add(images / name, name)
    plain = Shards(root)
    monkeypatch.setattr(listing, "MAPPED_BYTES", 0)
    assert same(Shards(root), plain)
    assert plain.classes == ("class 0", "class 1", "class 2")
    assert plain.fingerprint == ImageFolder(images).fingerprint


def test_images_without_classes_are_mapped_too(images: Path, mapped: None) -> None:  # noqa: ARG001
    folder = ImageFolder(images / "class 1")
    assert folder.paths == ["01.png", "04.png", "07.png", "10.png"]
    assert folder.labels.tolist() == [-1] * 4


def slow_blocks(count: int, seconds: float) -> Iterator[Rows]:
    for block in blocks(count):
        yield block
        time.sleep(seconds)


def _in_another_process(results: "multiprocessing.Queue[tuple[int, bool]]") -> None:
    listing.MAPPED_BYTES = 0
    made = make_listing("the same", slow_blocks(40, 0.1), no_classes)
    results.put((len(made), made.by_another))


def test_of_several_processes_one_lists() -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, bool]] = context.Queue()
    processes = [context.Process(target=_in_another_process, args=(results,)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [length for length, _ in found] == [200] * 3
    assert sorted(by_another for _, by_another in found) == [False, True, True]


def test_an_older_listing_is_made_again(mapped: None) -> None:  # noqa: ARG001
    assert len(make_listing("it", blocks(2), no_classes)) == 10
    again = make_listing("it", blocks(3), no_classes)
    assert (len(again), again.by_another) == (15, False)


def test_what_a_killed_process_left_is_replaced(cache: Path, mapped: None) -> None:  # noqa: ARG001
    make_listing("it", blocks(2), no_classes)
    folder = next((cache / "listings").glob("*/listing.json")).parent
    (folder.parent / f"{folder.name}.new").mkdir()
    (folder.parent / f"{folder.name}.new" / "text").write_bytes(b"half")
    (folder / "listing.json").unlink()
    assert len(make_listing("it", blocks(3), no_classes)) == 15


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mapped: None,  # noqa: ARG001
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(SagaError, match="set SAGA_FAST_CACHE to one"):
        make_listing("it", blocks(2), no_classes)


def test_a_failure_within_the_listing_leaves_nothing(cache: Path, mapped: None) -> None:  # noqa: ARG001
    def broken() -> Iterator[Rows]:
        yield from blocks(2)
        raise SagaError("cut")

    with pytest.raises(SagaError, match="cut"):
        make_listing("it", broken(), no_classes)
    assert len(make_listing("it", blocks(2), no_classes)) == 10
    assert [path.name for path in (cache / "listings").iterdir() if path.suffix == ".new"] == []


@pytest.mark.parametrize("damage", [False, True])
def test_a_mapped_table_is_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool) -> None:
    generator = np.random.default_rng(0)
    whole = BoxTable.whole(1000)
    whole.boxes[:, 2:] = generator.uniform(0.1, 1.0, (1000, 2))
    whole.found[::2] = True
    path = tmp_path / "table.safetensors"
    BoxTable(whole.boxes, whole.found, whole.pseudo_label, whole.score, {"dataset": "it"}).save(path)
    plain = BoxTable.open(path)
    monkeypatch.setattr(box_table, "MAPPED_BYTES", 0)
    if damage:
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
        with pytest.raises(SagaError, match="damaged"):
            BoxTable.open(path)
        return
    table = BoxTable.open(path)
    assert isinstance(table.boxes, np.memmap)
    for name in ("boxes", "found", "pseudo_label", "score"):
        one, two = getattr(table, name), getattr(plain, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert dict(table.metadata) == dict(plain.metadata)
    table.save(path)  # over the file that is mapped
    np.testing.assert_array_equal(BoxTable.open(path).boxes, plain.boxes)


@pytest.mark.parametrize("content", [b"x" * 64, b"\xff" * 7 + b"\x7f" + b"{}" * 40, b"\x02" + b"\0" * 7 + b"{}"])
def test_other_files_are_refused_when_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(box_table, "MAPPED_BYTES", 0)
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(SagaError, match="not a box table"):
        BoxTable.open(tmp_path / "other")
