"""Errors and Ctrl-C do not wait for files that take long."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from remote_fixtures import caches, folder, server
from tar_files import write_tar
from web_server import Request, WebServer

from saga_fast.errors import SagaError
from saga_fast.loaders import open_source

__all__ = ["caches", "folder", "server"]


SLOW = {"many requests": (2**9, 0.05), "one request": (2**23, 4.0)}
"""Bytes of a request, and seconds before its answer: a file that takes 4 s or more."""


@pytest.fixture(params=SLOW)
def slow(request: pytest.FixtureRequest, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """The server, whose ``slow.tar`` takes seconds, and whose third tar file cannot be read."""
    monkeypatch.setattr("saga_fast.loaders.remote.download.CHUNK", SLOW[request.param][0])
    monkeypatch.setattr("saga_fast.loaders.remote.index.BLOCK", SLOW[request.param][0])
    write_tar(server.root / "slow.tar", {f"{number:03}.jpg": b"" for number in range(200)})

    def answer(request_: Request) -> int | None:
        if request_.method == "GET" and request_.path == "/slow.tar":
            time.sleep(SLOW[request.param][1])
        return 404 if request_.method == "GET" and request_.path == "/00002.tar" else None

    server.fault = answer
    return server


@pytest.mark.parametrize("has_copies", [False, True], ids=["streamed", "copied"])
@pytest.mark.parametrize("names", ["slow,00002", "00002,slow"])
def test_an_error_does_not_wait_for_other_files(slow: WebServer, tmp_path: Path, names: str, has_copies: bool) -> None:
    copies, began = tmp_path / "copies", time.perf_counter()
    with pytest.raises(SagaError, match=r"00002\.tar, bytes 0 to \d+: 404 Not Found$"):
        open_source("folder", f"{slow.url}/{{{names}}}.tar", cache=copies if has_copies else None)
    assert time.perf_counter() - began < 1
    assert not has_copies or list(copies.iterdir()) == []


@pytest.mark.parametrize("has_copies", [False, True], ids=["streamed", "copied"])
def test_an_interrupt_does_not_wait_for_files(slow: WebServer, tmp_path: Path, has_copies: bool) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    began = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            open_source("folder", f"{slow.url}/{{00000,slow}}.tar", cache=tmp_path / "copies" if has_copies else None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - began < 1
    time.sleep(0.1)  # a request may be on its way
    count = len(slow.requests)
    time.sleep(0.2)
    assert len(slow.requests) == count
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saga-fast")]
