"""Listings: in memory, or mapped files that processes share; both are the same data set."""

import errno
import fcntl
import json
import mmap
import multiprocessing
import resource
import tarfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.loaders import ImageFolder, Shards, listing
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


def is_mapped(column: npt.NDArray[Any]) -> bool:
    base: object = column.base
    return isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap)


def anonymous_memory(folder: Path) -> int:
    """kB of this process's maps of files in a folder that it does not share with others: pages written to."""
    held, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Anonymous:"):
            held += int(line.split()[1])
    return held


def kept_folder(cache: Path) -> Path:
    (about,) = (cache / "listings").glob("*/listing.json")
    return about.parent


def test_small_listings_write_nothing(images: Path, cache: Path) -> None:
    assert len(ImageFolder(images)) == 12
    assert not cache.exists()


def test_a_mapped_folder_is_the_folder(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageFolder(images)
    monkeypatch.setattr(listing, "MAPPED_BYTES", 0)
    folder = ImageFolder(images)
    assert is_mapped(folder.labels) and not is_mapped(plain.labels)
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
    results.put((len(made), made.listed_elsewhere))


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
    assert sorted(listed_elsewhere for _, listed_elsewhere in found) == [False, True, True]


def test_an_older_listing_is_made_again(mapped: None) -> None:  # noqa: ARG001
    assert len(make_listing("it", blocks(2), no_classes)) == 10
    again = make_listing("it", blocks(3), no_classes)
    assert (len(again), again.listed_elsewhere) == (15, False)


def test_a_listing_of_another_version_is_not_taken(
    mapped: None,  # noqa: ARG001
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_now", lambda: ("this start", 1.0))  # all processes at the same time
    assert len(make_listing("it", blocks(2), no_classes, version="a")) == 10
    assert make_listing("it", blocks(3), no_classes, version="a").listed_elsewhere
    other = make_listing("it", blocks(3), no_classes, version="b")
    assert (len(other), other.listed_elsewhere) == (15, False)
    assert len(list(kept_folder(cache).parent.glob("*/listing.json"))) == 1


def test_what_a_killed_process_left_is_replaced(cache: Path, mapped: None) -> None:  # noqa: ARG001
    make_listing("it", blocks(2), no_classes)
    folder = kept_folder(cache)
    for leftover in (f".{folder.name}.12345678", ".of another set"):
        (folder.parent / leftover / "new").mkdir(parents=True)
        (folder.parent / leftover / "new" / "text").write_bytes(b"half")
    (folder / "listing.json").unlink()
    assert len(make_listing("it", blocks(3), no_classes)) == 15
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, ".of another set"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"finished": 1e18}'])
def test_a_damaged_listing_is_made_again(cache: Path, mapped: None, content: str) -> None:  # noqa: ARG001
    make_listing("it", blocks(2), no_classes)
    (kept_folder(cache) / "listing.json").write_text(content)
    assert len(make_listing("it", blocks(3), no_classes)) == 15


def finish_later(folder: Path, **about: Any) -> None:
    """Make a listing one that was finished later than any that begins now."""
    content = json.loads((folder / "listing.json").read_text())
    (folder / "listing.json").write_text(json.dumps(content | {"finished": [content["finished"][0], 1e18]} | about))


@pytest.mark.parametrize("column", ["text", "end", "label"])
def test_a_column_that_is_cut_is_noticed(cache: Path, mapped: None, column: str) -> None:  # noqa: ARG001
    make_listing("it", blocks(2), no_classes)
    finish_later(kept_folder(cache))
    taken = make_listing("it", blocks(3), no_classes)
    assert (len(taken), taken.listed_elsewhere) == (10, True)
    path = kept_folder(cache) / column
    path.write_bytes(path.read_bytes()[:-8])
    made = make_listing("it", blocks(3), no_classes)
    assert (len(made), made.listed_elsewhere) == (15, False)


def test_a_clock_that_is_set_back(mapped: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    make_listing("it", blocks(2), no_classes)
    before = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: before)
    assert len(make_listing("it", blocks(3), no_classes)) == 15


@pytest.mark.parametrize("known", [True, False])
def test_a_listing_of_another_start_or_machine_is_not_taken(
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mapped: None,  # noqa: ARG001
    known: bool,
) -> None:
    if not known:  # a system that does not tell its starts apart
        monkeypatch.setattr(listing, "BOOT_ID", tmp_path / "none")
    make_listing("it", blocks(2), no_classes)
    finish_later(kept_folder(cache), **({"finished": ["another", 1e18]} if known else {}))
    assert len(make_listing("it", blocks(3), no_classes)) == 15


def test_processes_do_not_disturb_each_other_without_locks(
    cache: Path,
    mapped: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    def interrupted() -> Iterator[Rows]:
        yield from blocks(4)[:2]
        inner.append(make_listing("it", blocks(3), no_classes))  # as another process would at this moment
        yield from blocks(4)[2:]

    monkeypatch.setattr(fcntl, "flock", no_locks)
    inner: list[listing.Listing] = []
    outer = make_listing("it", interrupted(), no_classes)
    for made, count in ((outer, 4), (inner[0], 3)):
        assert list(made.names) == [name for names, _ in blocks(count) for name in names]
        assert made.columns["label"].tolist() == np.repeat(np.arange(count), 5).tolist()
    assert [path.name for path in (cache / "listings").iterdir()] == [kept_folder(cache).name]


def test_mapped_numbers_become_tensors_without_a_warning_and_stay_shared(
    images: Path,
    cache: Path,
    mapped: None,  # noqa: ARG001
) -> None:
    labels = ImageFolder(images).labels
    assert labels.flags.writeable  # PyTorch warns only once in a process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(labels)
    assert tensor.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert anonymous_memory(cache) == 0
    tensor[0] = 7
    assert anonymous_memory(cache) > 0
    assert np.fromfile(kept_folder(cache) / "label", np.int64)[0] == 0


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mapped: None,  # noqa: ARG001
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(SagaError, match="set SAGA_FAST_CACHE to one"):
        make_listing("it", blocks(2), no_classes)


@pytest.mark.parametrize("error", [SagaError("cut"), KeyboardInterrupt(), PermissionError(13, "no")], ids=repr)
def test_a_failure_of_the_data_set_is_raised_as_it_is_and_leaves_nothing(
    cache: Path,
    mapped: None,  # noqa: ARG001
    error: BaseException,
) -> None:
    def broken() -> Iterator[Rows]:
        yield from blocks(2)
        raise error

    with pytest.raises(type(error)) as caught:
        make_listing("it", broken(), no_classes)
    assert caught.value is error
    assert list((cache / "listings").iterdir()) == []
    assert len(make_listing("it", blocks(2), no_classes)) == 10


def test_a_full_disk_is_named_and_leaves_nothing(cache: Path, mapped: None) -> None:  # noqa: ARG001
    # The system refuses to let a file grow beyond 1 KiB, as a full disk or a quota would.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(SagaError, match=f"cannot be kept in {cache / 'listings'}: File too large; SAGA_FAST_CACHE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            make_listing("it", blocks(100), no_classes)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((cache / "listings").iterdir()) == []
