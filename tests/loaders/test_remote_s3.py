"""Tar files at s3 addresses, through s3fs, from a server on this machine: patterns, faults, and the same images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs
from remote_fixtures import folder
from same_batches import assert_same_batches
from tar_files import write_shards, write_tar
from web_server import WebServer, serving

from saga_fast.errors import SagaError
from saga_fast.loaders import CropPlan, ImageFolder, LoaderOptions, open_loader, open_source
from saga_fast.loaders.remote import store

__all__ = ["folder"]


@pytest.fixture
def server(folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """The folder as three tar files in the bucket ``b``."""
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "caches"))
    monkeypatch.setattr(store, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # they try again themselves
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    write_shards(folder, tmp_path / "site" / "b" / "train")
    with serving(tmp_path / "site") as server:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server.url, "anon": True})
        store.store_of.cache_clear()
        store._store.cache_clear()
        yield server
    store.store_of.cache_clear()
    store._store.cache_clear()


PATTERNS = ("train/{00000..00002}.tar", "train/*.tar", "train/0000[0-2].tar", "train/0000?.tar")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_images_are_the_folder(folder: ImageFolder, server: WebServer, pattern: str) -> None:
    write_tar(server.root / "b" / "val" / "00000.tar", {"x.jpg": b""})
    source = open_source("folder", f"s3://b/{pattern}")
    assert source.root == f"s3://b/{pattern}"
    assert (source.paths, source.classes, source.fingerprint) == (folder.paths, folder.classes, folder.fingerprint)
    options = LoaderOptions(batch_size=5, shuffle=True, threads=2)
    ours = open_loader("folder", source, CropPlan(size=9, seed=0), options)
    base = open_loader("folder", folder, CropPlan(size=9, seed=0), options)
    assert_same_batches(ours, base)
    server.requests.clear()
    assert open_source("folder", f"s3://b/{pattern}").fingerprint == folder.fingerprint
    assert server.ranges() == []  # the kept index


def test_faults(folder: ImageFolder, server: WebServer) -> None:
    source = open_source("folder", "s3://b/train/*.tar")
    server.requests.clear()
    server.fault = lambda _: 503 if len(server.requests) < store.TRIES else None
    assert source.read(3) == folder.read(3)
    server.fault = lambda _: 403
    server.requests.clear()
    with pytest.raises(OSError, match=r"^s3://b/train/00000\.tar, bytes \d+ to \d+: ") as error:
        source.read(3)
    assert "\n" not in str(error.value)
    assert max(Counter(server.requests).values()) == 1
    server.fault = lambda _: 500
    with pytest.raises(OSError, match=rf"^s3://b/train/00000\.tar, .*after {store.TRIES} tries"):
        source.read(3)


def test_what_is_not_there(server: WebServer) -> None:
    assert server.requests == []
    with pytest.raises(SagaError, match=r"^no file matches s3://b/nothing/\*\.tar$"):
        open_source("folder", "s3://b/nothing/*.tar")
    with pytest.raises(SagaError, match=r"^cannot read s3://b/train/00009\.tar: no such file$"):
        open_source("folder", "s3://b/train/00009.tar")
