"""Tar and parquet files at addresses: the images of the same files on this machine, to the byte."""

from pathlib import Path

import numpy as np
import pytest
from remote_fixtures import caches, folder, server
from same_batches import assert_same_epochs
from tar_files import make_jpeg, write_tar
from web_server import WebServer

from saga_fast.errors import SagaError
from saga_fast.loaders import CropPlan, ImageFolder, LoaderOptions, Shards, WholePlan, listing, open_loader, open_source
from saga_fast.loaders.remote.names import expand_braces
from saga_fast.loaders.remote.shards import RemoteShards

__all__ = ["caches", "folder", "server"]
pytestmark = pytest.mark.usefixtures("caches")

TARS = "{00000..00002}.tar"


@pytest.mark.parametrize("has_copies", [False, True], ids=["streamed", "copied"])
@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_remote_tars_are_the_folder(
    folder: ImageFolder, server: WebServer, tmp_path: Path, engine: str, has_copies: bool
) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    address = f"{server.url}/{TARS}"
    source = open_source(engine, address, cache=tmp_path / "copies" if has_copies else None)
    local = Shards(server.root)
    assert isinstance(source, Shards if has_copies else RemoteShards)
    assert source.root == address
    for other in (local, folder):
        assert (source.paths, source.classes, source.fingerprint) == (other.paths, other.classes, other.fingerprint)
        np.testing.assert_array_equal(source.labels, other.labels)
        assert [source.read(index) for index in range(len(source))] == [other.read(n) for n in range(len(other))]
    server.requests.clear()
    options = LoaderOptions(batch_size=5, shuffle=True, threads=2)
    ours = open_loader(engine, source, CropPlan(size=9, seed=0), options)
    base = open_loader("folder", folder, CropPlan(size=9, seed=0), options)
    assert_same_epochs(ours, base)
    assert bool(server.requests) is not has_copies


@pytest.mark.parametrize("has_copies", [False, True], ids=["streamed", "copied"])
def test_a_listing_that_is_mapped(
    folder: ImageFolder, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_copies: bool
) -> None:
    monkeypatch.setattr(listing, "MAPPED_BYTES", 0)
    source = open_source("folder", f"{server.url}/{TARS}", cache=tmp_path / "copies" if has_copies else None)
    assert len(list((tmp_path / "caches" / "listings").iterdir())) == 1
    assert (source.paths, source.classes, source.labels.tolist()) == (
        folder.paths,
        folder.classes,
        folder.labels.tolist(),
    )
    for batch, other in zip(
        open_loader("folder", source, WholePlan(size=8), batch_size=8),
        open_loader("folder", folder, WholePlan(size=8), batch_size=8),
        strict=True,
    ):
        np.testing.assert_array_equal(batch.views, other.views)


def test_open_loader_takes_an_address(folder: ImageFolder, server: WebServer) -> None:
    batches = list(open_loader("folder", f"{server.url}/{TARS}", WholePlan(size=8), batch_size=8))
    base = list(open_loader("folder", folder, WholePlan(size=8), batch_size=8))
    for batch, other in zip(batches, base, strict=True):
        np.testing.assert_array_equal(batch.views, other.views)


def test_a_tar_of_labels(server: WebServer) -> None:
    members = {"b.cls": b"7", "b.jpg": b"B", "a.jpg": b"A", "a.json": b'{"label": 2}', "c.jpg": b"C"}
    write_tar(server.root / "x.tar", members)
    source = open_source("folder", f"{server.url}/x.tar")
    assert source.labels.tolist() == [7, 2, -1]
    assert source.classes == tuple("01234567")
    write_tar(server.root / "y.tar", {"a.jpg": b"", "a.cls": b"cat"})
    with pytest.raises(SagaError, match=r"no label in http.*y\.tar: a\.cls"):
        open_source("folder", f"{server.url}/y.tar")


def test_members_that_are_larger_than_a_block_are_skipped(server: WebServer) -> None:
    large = bytes(5 * 2**20)
    write_tar(server.root / "x.tar", {"a.jpg": make_jpeg(0), "film.mp4": large, "b.jpg": make_jpeg(1)})
    source = open_source("folder", f"{server.url}/x.tar")
    assert [source.read(index) for index in range(2)] == [make_jpeg(0), make_jpeg(1)]
    assert server.served < 3 * 2**20


def test_neighbours_are_one_request(server: WebServer) -> None:
    members = {f"{number}.jpg": make_jpeg(number) for number in range(6)}
    write_tar(server.root / "x.tar", {**members, "gap.bin": bytes(2**17), "6.jpg": make_jpeg(6)})
    source = open_source("folder", f"{server.url}/x.tar")
    assert isinstance(source, RemoteShards)
    assert source.runs([5, 6, 0, 3, 1]) == [[0, 1, 3, 5], [6]]  # 5 is first, and in the group of 0
    server.requests.clear()
    for batch in open_loader("folder", source, WholePlan(size=8), batch_size=7):
        assert batch.index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(server.ranges()) == 2
    open_all = open_source("folder", f"{server.url}/{TARS}")
    server.requests.clear()
    assert sum(len(batch.index) for batch in open_loader("folder", open_all, WholePlan(size=8), batch_size=23)) == 23
    assert sorted(request.path for request in server.ranges()) == ["/00000.tar", "/00001.tar", "/00002.tar"]


def test_parquet_is_read_from_a_copy(folder: ImageFolder, server: WebServer, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [folder.read(index) for index in range(4)], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(str(server.root / "train.parquet"))
    address = f"{server.url}/train.parquet"
    with pytest.raises(SagaError, match=r"train\.parquet is parquet, .*data\.cache or --cache"):
        open_source("folder", address)
    source = open_source("folder", address, cache=tmp_path / "copies")
    assert source.root == address
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert [source.read(index) for index in range(4)] == rows["image"]


BRACES = {
    "x.tar": ["x.tar"],
    "{8..11}": ["8", "9", "10", "11"],
    "{08..11}": ["08", "09", "10", "11"],
    "{008..010}.tar": ["008.tar", "009.tar", "010.tar"],
    "{a,b}/{0..1}": ["a/0", "a/1", "b/0", "b/1"],
    "{a,}x": ["ax", "x"],
}


@pytest.mark.parametrize("pattern", BRACES)
def test_braces(pattern: str) -> None:
    assert expand_braces(pattern) == BRACES[pattern]


REFUSED = {
    "http://h/{3..1}.tar": "stands for 0 files",
    "http://h/{0..99999999}.tar": "more than 1000000 files",
    "http://h/{0..9999}{0..9999}.tar": "stands for 100000000 files",
    "http://h/{x}.tar": r"\{x\} in http://h/\{x\}\.tar: braces hold a range",
    "http://h/*.tar": "web servers have no listing",
    "ftp://h/x.tar": "ftp://h/x.tar: addresses begin with http://, https://, s3://, gs://",
    "file:///etc/passwd": "addresses begin with",
    "http://h/x.tar.gz": "x.tar.gz is compressed, .* decompress it",
    "http://h/{x.tar,y.tgz}": "y.tgz is compressed",
    "http://h/{x.tar,y.parquet}": "name tar files, or parquet files",
}


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(SagaError, match=REFUSED[address]) as error:
        open_source("folder", address)
    assert "\n" not in str(error.value)


def test_what_does_not_go_with_an_address(server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=r"engine ffcv reads files of this machine, .* folder or dali"):
        open_source("ffcv", f"{server.url}/x.tar")
    with pytest.raises(SagaError, match="class list"):
        open_source("folder", f"{server.url}/x.tar", classes=tmp_path / "classes.txt")
    assert server.requests == []


@pytest.mark.parametrize("content", [b"no tar", b"", bytes(10240)], ids=["text", "empty", "no image"])
def test_what_is_no_tar_of_images(server: WebServer, content: bytes) -> None:
    (server.root / "x.tar").write_bytes(content)
    with pytest.raises(SagaError, match=r"x\.tar") as error:
        open_source("folder", f"{server.url}/x.tar")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("address", "package"), [("http://h/x.tar", "aiohttp"), ("s3://b/x.tar", "s3fs")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, address: str, package: str) -> None:
    def absent(name: str) -> None:
        if name == package:
            raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("saga_fast.loaders.packages.importlib.import_module", absent)
    with pytest.raises(SagaError, match=rf"://.* needs {package} .*: pip install 'saga-fast\[remote\]'$") as error:
        open_source("folder", address)
    assert "\n" not in str(error.value)
