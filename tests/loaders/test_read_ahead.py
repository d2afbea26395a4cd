"""Reads over a network are started early, within bounded memory, and an epoch that is closed early leaves none."""

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path

import numpy as np
import pytest
from remote_fixtures import caches, server
from tar_files import make_folder
from web_server import WebServer

from saga_fast.loaders import CropPlan, ImageFolder, Loader, LoaderOptions, open_loader, open_source
from saga_fast.loaders.ffcv.pack import PackOptions, pack
from saga_fast.loaders.read_ahead import ReadAhead
from saga_fast.loaders.remote import shards
from saga_fast.loaders.remote.shards import Contents, RemoteShards

__all__ = ["caches", "server"]

N = 120
ENGINES = ("folder", "dali")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    return make_folder(tmp_path_factory.mktemp("images"), N)


class Recorder:
    """What an iteration has started and read.

    Attributes:
        most: the largest number of images at once that were started and not yet read.
        futures: all requests.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.futures, self._unread = 0, list[Future[Contents]](), set[int]()
        self._lock = threading.Lock()
        fetch, read = RemoteShards.fetch, shards._StartedReads.read

        def recorded_fetch(source: RemoteShards, run: Sequence[int]) -> Future[Contents]:
            future = fetch(source, run)
            with self._lock:
                self._unread.update(run)
                self.most = max(self.most, len(self._unread))
                self.futures.append(future)
            return future

        def recorded_read(reads: shards._StartedReads, index: int) -> bytes:
            content = read(reads, index)
            with self._lock:
                self._unread.discard(index)
            return content

        monkeypatch.setattr(RemoteShards, "fetch", recorded_fetch)
        monkeypatch.setattr(shards._StartedReads, "read", recorded_read)


def make_loader(engine: str, server: WebServer, *, prefetch: int) -> Loader:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    source = open_source(engine, f"{server.url}/{{00000..00002}}.tar")
    options = LoaderOptions(batch_size=8, shuffle=True, threads=2, prefetch=prefetch)
    return open_loader(engine, source, CropPlan(size=9, seed=0), options)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_in_memory_is_bounded(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, engine: str, prefetch: int
) -> None:
    loader = make_loader(engine, server, prefetch=prefetch)
    recorder = Recorder(monkeypatch)
    server.delay = 0.01  # a request takes longer than a crop: the reads are as far ahead as they get
    for number, batch in enumerate(loader):
        assert len(batch.index) == 8
        if number == 2:
            time.sleep(0.3)  # a slow consumer
    assert 8 * (prefetch + 1) <= recorder.most <= 8 * (prefetch + 2)
    assert all(future.done() for future in recorder.futures)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_epoch_that_is_closed_early_leaves_nothing(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    loader = make_loader(engine, server, prefetch=2)
    recorder = Recorder(monkeypatch)
    batches = iter(loader)
    assert isinstance(batches, Generator)
    next(batches)
    server.delay = 3.0  # longer than a busy machine takes for the next batch, whose reads have ended
    next(batches)
    began = time.perf_counter()
    batches.close()
    assert time.perf_counter() - began < 0.4  # no request is waited for
    assert all(future.done() for future in recorder.futures)
    assert any(future.cancelled() for future in recorder.futures)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saga-fast")]
    time.sleep(0.6)
    count = len(server.requests)
    time.sleep(0.2)
    assert len(server.requests) == count
    server.delay = 0.0
    assert sum(len(batch.index) for batch in loader) == N


def test_reads_that_were_stopped(server: WebServer) -> None:
    ahead = ReadAhead(open_source("folder", f"{server.url}/{{00000..00002}}.tar"))
    server.delay = 0.5
    ahead.start(np.arange(20))
    errors: list[BaseException] = []

    def read() -> None:
        try:
            ahead.source.read(3)
        except CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.1)
    ahead.stop()
    thread.join(0.3)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(CancelledError):
        ahead.source.read(50)


def test_images_that_are_read_twice_or_not_started(folder: ImageFolder, server: WebServer) -> None:
    ahead = ReadAhead(open_source("folder", f"{server.url}/{{00000..00002}}.tar"))
    ahead.start(np.array([3, 4, 5]))
    assert [ahead.source.read(index) for index in (4, 4, 5, 99)] == [folder.read(index) for index in (4, 4, 5, 99)]
    ahead.stop()


def test_other_sources_are_read_as_they_are(folder: ImageFolder) -> None:
    ahead = ReadAhead(folder)
    assert ahead.source is folder
    batches = [np.arange(4), np.arange(4, 8)]
    assert [each.tolist() for each in ahead.lead(batches, 3)] == [each.tolist() for each in batches]
    ahead.stop()


def test_pack_reads_ahead(
    folder: ImageFolder, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ffcv")
    source = open_source("folder", f"{server.url}/{{00000..00002}}.tar")
    recorder = Recorder(monkeypatch)
    for name, images in (("remote", source), ("local", folder)):
        pack(images, tmp_path / f"{name}.beton", PackOptions(mode="jpg"), workers=2, chunk_size=8, max_bad_fraction=0.0)
    assert recorder.most <= 8 * 4
    assert len(recorder.futures) < N / 4
    assert (tmp_path / "remote.beton").read_bytes() == (tmp_path / "local.beton").read_bytes()
