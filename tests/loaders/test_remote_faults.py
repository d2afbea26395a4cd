"""Servers that fail: tried again, else bad images or errors of one line, and nowhere a secret."""

import os
import shutil
import signal
import socket
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from remote_fixtures import caches, folder, server
from same_batches import assert_same_batches
from web_server import Request, WebServer

from saga_fast.cli import main
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, CropPlan, ImageFolder, LoaderOptions, WholePlan, open_loader, open_source
from saga_fast.loaders.remote import store

__all__ = ["caches", "folder", "server"]

TARS = "{00000..00002}.tar"
Fault = Callable[[Request], int | str | None]


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "caches"))
    monkeypatch.setattr(store, "FIRST_WAIT", 0.0)


def at_first(fault: int | str, times: int) -> Fault:
    """The fault for the first tries of each request."""
    tries: Counter[Request] = Counter()

    def answer(request: Request) -> int | str | None:
        tries[request] += 1
        return fault if tries[request] <= times else None

    return answer


@pytest.mark.parametrize("has_copies", [False, True], ids=["streamed", "copied"])
@pytest.mark.parametrize(("fault", "times"), [(500, 3), (503, 1), (429, 3), (408, 1), ("cut", 2)])
def test_what_passes_is_tried_again(
    folder: ImageFolder, server: WebServer, tmp_path: Path, fault: int | str, times: int, has_copies: bool
) -> None:
    server.fault = at_first(fault, times)
    source = open_source("folder", f"{server.url}/{TARS}", cache=tmp_path / "copies" if has_copies else None)
    loader = open_loader("folder", source, WholePlan(size=8), batch_size=8)
    base = open_loader("folder", folder, WholePlan(size=8), batch_size=8)
    assert_same_batches(loader, base)
    assert len(loader.bad) == 0
    assert max(Counter(server.requests).values()) > times


@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_a_range_that_always_fails_is_one_bad_image(folder: ImageFolder, server: WebServer, engine: str) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    source = open_source(engine, f"{server.url}/{TARS}")
    content, image = (server.root / "00000.tar").read_bytes(), source.read(4)
    place = content.index(image) + 10
    server.fault = lambda request: (
        500 if request.path == "/00000.tar" and request.begin <= place < request.end else None
    )
    bad = BadImages(source, max_fraction=0.1)
    options = LoaderOptions(batch_size=23, shuffle=True, threads=2)
    batches = list(open_loader(engine, source, CropPlan(size=9, seed=0), options, bad=bad))
    assert [len(batch.index) for batch in batches] == [23]  # another image takes its place
    assert set(batches[0].index.tolist()) == set(range(23)) - {4}
    begin = content.index(image)
    assert bad.reasons == {
        4: f"{server.url}/00000.tar, bytes {begin} to {begin + len(image)}: 500 Internal Server Error,"
        f" after {store.READ_TRIES} tries"
    }
    base = open_loader("folder", folder, CropPlan(size=9, seed=0), options, bad=BadImages(folder, known=[4]))
    rows = {index: views for batch in base for index, views in zip(batch.index.tolist(), batch.views, strict=True)}
    for index, views in zip(batches[0].index.tolist(), batches[0].views, strict=True):
        np.testing.assert_array_equal(views, rows[index])
    with pytest.raises(SagaError, match="more than max_bad_fraction"):
        list(open_loader(engine, source, CropPlan(size=9, seed=0), options))


def test_a_server_that_ignores_ranges_is_an_error_at_once(server: WebServer) -> None:
    server.fault = lambda request: "whole" if request.method == "GET" else None
    with pytest.raises(SagaError, match=r"0000\d\.tar: .*: the server ignores ranges$") as error:
        open_source("folder", f"{server.url}/{TARS}")
    assert "\n" not in str(error.value)
    assert max(Counter(server.requests).values()) == 1


@pytest.mark.parametrize("has_copies", [False, True], ids=["streamed", "copied"])
def test_a_file_that_comes_whole_in_place_of_a_range_is_not_read(
    server: WebServer, tmp_path: Path, has_copies: bool
) -> None:
    with (server.root / "x.tar").open("wb") as file:
        file.truncate(2**26)
    server.fault = lambda request: "whole" if request.method == "GET" else None
    with pytest.raises(SagaError, match=r"x\.tar.*: 67108864 bytes in place of \d+: the server ignores ranges$"):
        open_source("folder", f"{server.url}/x.tar", cache=tmp_path / "copies" if has_copies else None)
    assert len(server.ranges()) == 1
    assert server.served == 0  # the connection is closed


def test_an_answer_that_stays_short_has_a_reason(server: WebServer) -> None:
    source = open_source("folder", f"{server.url}/{TARS}")
    server.fault = lambda _: "cut"
    with pytest.raises(OSError, match=rf"00000\.tar, bytes 512 to \d+: .*, after {store.READ_TRIES} tries$") as error:
        source.read(0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (401, 1), (500, store.TRIES)])
def test_files_that_cannot_be_opened(server: WebServer, status: int, tries: int) -> None:
    server.fault = lambda _: status
    with pytest.raises(SagaError, match=rf"^cannot read {server.url}/00000\.tar: ") as error:
        open_source("folder", f"{server.url}/00000.tar")
    assert "\n" not in str(error.value)
    assert str(status) in str(error.value)
    assert Counter(request.method for request in server.requests)["HEAD"] == tries


def test_one_missing_file_of_several(server: WebServer) -> None:
    with pytest.raises(SagaError, match=r"^cannot read http.*/00003\.tar: 404 ") as error:
        open_source("folder", f"{server.url}/{{00000..00003}}.tar")
    assert "\n" not in str(error.value)


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar"
    with pytest.raises(SagaError, match=rf"^cannot read {address}: .*after {store.TRIES} tries$") as error:
        open_source("folder", address)
    assert "\n" not in str(error.value)


def test_no_answer(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("folder", f"{server.url}/00000.tar")
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    monkeypatch.setattr(store, "READ_TRIES", 2)
    server.delay = 1.0
    with pytest.raises(OSError, match=r"no answer in 0 s, after 2 tries"):
        source.read(0)


def test_copies_that_do_not_fit(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(SagaError, match=r"the copies need 0\.0 GB more in .*, which has 0\.0 GB free"):
        open_source("folder", f"{server.url}/{TARS}", cache=tmp_path / "copies")
    assert {request.method for request in server.requests} == {"HEAD"}


def test_a_download_that_fails_leaves_no_part(server: WebServer, tmp_path: Path) -> None:
    server.fault = lambda request: 500 if request.method == "GET" and request.path == "/00002.tar" else None
    with pytest.raises(SagaError, match=r"^cannot read http.*/00002\.tar, bytes 0 to \d+: 500 ") as error:
        open_source("folder", f"{server.url}/{TARS}", cache=tmp_path / "copies")
    assert "\n" not in str(error.value)
    assert not any(path.name.endswith("00002.tar") for path in (tmp_path / "copies").iterdir())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, in processes with threads
def test_a_forked_process_reads_too(server: WebServer) -> None:
    source = open_source("folder", f"{server.url}/{TARS}")
    image = source.read(3)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # in place of waiting for a thread that stayed behind
        os._exit(0 if source.read(3) == image else 1)
    assert os.waitpid(child, 0)[1] == 0


SECRETS = ("hans", "hunter2", "abc123")


def secret_address(server: WebServer) -> str:
    return server.url.replace("http://", "http://hans:hunter2@") + f"/{TARS}?token=abc123"


def test_secrets_are_sent_and_not_shown(
    server: WebServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG", logger="saga_fast")
    address, texts = secret_address(server), []
    source = open_source("folder", address)
    assert all(request.path.endswith("?token=abc123") for request in server.requests)
    copy = open_source("folder", address, cache=tmp_path / "copies")
    texts += [str(source.root), repr(source), str(copy.root), repr(copy)]
    monkeypatch.setattr(store, "READ_TRIES", 1)
    server.fault = lambda _: 500
    loader = open_loader("folder", source, WholePlan(size=8), batch_size=8, bad=BadImages(source, max_fraction=1.0))
    assert list(loader) == []
    loader.bad.write(tmp_path / "bad.txt")
    texts += [*loader.bad.reasons.values(), (tmp_path / "bad.txt").read_text()]
    assert len(loader.bad) == 23
    wrong = (address.replace("00000", "a"), address.replace("http", "ftp"), address.replace(".tar?", ".tgz?"), address)
    for each in wrong:
        with pytest.raises(SagaError) as error:
            open_source("folder", each)
        texts.append(str(error.value))
    with pytest.raises(SagaError) as error:
        open_source("ffcv", address)
    texts.append(str(error.value))
    assert all("://127.0.0.1" in text for text in texts)
    for text in (*texts, caplog.text, *map(str, (tmp_path / "copies").iterdir())):
        assert not any(secret in text for secret in SECRETS), text


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [403, 404, 500])
def test_tracebacks_show_no_secrets(server: WebServer, tmp_path: Path, status: int, method: str) -> None:
    address = secret_address(server)
    source = open_source("folder", address.replace(TARS, "00000.tar"))
    server.fault = lambda request: status if request.method in (method, "GET") else None
    reads: list[Callable[[], object]] = [
        lambda: source.read(0),
        lambda: open_source("folder", address.replace(TARS, "00001.tar")),
        lambda: open_source("folder", address, cache=tmp_path / "copies"),
    ]
    for read in reads:
        with pytest.raises((OSError, SagaError)) as error:
            read()
        text = "".join(traceback.format_exception(error.value))
        assert f"127.0.0.1:{server.server_port}/0000" in text
        assert not any(secret in text for secret in SECRETS), text


def test_a_table_and_a_config_hold_no_secrets(
    ckpt: Path, tiny_yaml: Path, server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, table, config = secret_address(server), tmp_path / "att.safetensors", load_config(tiny_yaml)
    assert main(["build-att", "--ckpt", str(ckpt), "--data", address, "--out", str(table), "--threads", "1"]) == 0
    output = "".join(capsys.readouterr())
    assert table.stat().st_size > 0
    text = yaml.safe_dump(config_to_dict(replace(config, data=replace(config.data, train=address, val=address))))
    assert server.url in text
    for content in (table.read_bytes().decode("latin-1"), output, text):
        assert not any(secret in content for secret in SECRETS)
    for wrong in (["--set", f"data.train=[{address!r}]"], ["--set", f"data.{address}=3"], ["--out", address]):
        try:
            assert main(["train", "--config", str(tiny_yaml), *wrong]) == 2
        except SystemExit as error:
            assert error.code == 2
        message = "".join(capsys.readouterr())
        assert not any(secret in message for secret in SECRETS), message


def test_a_run_folder_holds_no_secrets(
    tiny_yaml: Path, server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, address = tmp_path / "run", secret_address(server)
    values = ["evaluate=null", "saga.epochs=1", "attention.period=1", "data.val=null", f"data.train={address}"]
    assert main(["train", "--config", str(tiny_yaml), "--out", str(out), "--set", *values]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "r.html")]) == 0
    files = [tmp_path / "r.html", *(path for path in out.rglob("*") if path.is_file())]
    assert {"last.pt", "config.yaml", "metrics.jsonl"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes().decode("latin-1")
        assert not any(secret in content for secret in SECRETS), path
    assert server.url in (out / "config.yaml").read_text()
    output = "".join(capsys.readouterr())
    assert not any(secret in output for secret in SECRETS)
