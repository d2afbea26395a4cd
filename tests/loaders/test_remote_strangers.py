"""A stranger's checkpoint or run folder that names addresses of images causes no request, on any way in."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tar_files import make_folder, write_shards
from web_server import WebServer, serving

from saga_fast import load_model
from saga_fast.checkpoint import open_checkpoint
from saga_fast.cli import main


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("SAGA_FAST_CACHE", str(tmp_path / "caches"))
    with serving(write_shards(make_folder(tmp_path / "images"), tmp_path / "site")) as server:
        yield server


@pytest.fixture
def run(finished_run: Path, server: WebServer, tmp_path: Path) -> Path:
    """A run folder whose checkpoint and config name the server's images, and a folder for copies of them."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    data = {"train": f"{server.url}/00000.tar", "val": f"{server.url}/00002.tar", "cache": str(tmp_path / "copies")}
    content = torch.load(run / "last.pt", weights_only=True)
    content["config"]["data"] |= data
    torch.save(content, run / "last.pt")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_checkpoint(run / "last.pt").config.data.train == data["train"]
    return run


def test_nothing_is_fetched(
    run: Path, server: WebServer, images: Path, tmp_path: Path, tiny_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, folder = run / "last.pt", images / "val"
    load_model(ckpt)
    for command in (
        ["export", ckpt, "--to", "timm", "--out", tmp_path / "x.pth"],
        ["import", tmp_path / "x.pth", "--out", tmp_path / "i.pt", "--set", "encoder.stem=small"],
        ["import", ckpt, "--out", tmp_path / "j.pt"],
        ["report", run, "--out", tmp_path / "r.html"],
        ["build-att", "--ckpt", ckpt, "--data", folder, "--out", tmp_path / "t", "--threads", "1"],
        ["show-att", tmp_path / "t", "--data", folder, "--out", tmp_path / "s.png"],
        ["eval", "knn", "--ckpt", ckpt, "--data", images, "--k", "5", "--threads", "1"],
        ["eval", "pairs", "--ckpt", ckpt, "--data", folder, "--threads", "1"],
        ["train", "--config", tiny_yaml, "--ckpt", ckpt, "--out", tmp_path / "new", "--set", "saga.epochs=1"],
        ["train", "--config", tiny_yaml, "--resume", "--out", run],
    ):
        code = main([str(part) for part in command])
        error = capsys.readouterr().err
        assert code == 0 or command[0] == "import", f"{command}: {error}"
        assert server.requests == [], command
    assert f"images at an address, {server.url}/00000.tar, are not fetched" in (tmp_path / "r.html").read_text()
    assert not (tmp_path / "copies").exists()
    assert not (tmp_path / "caches").exists()


@pytest.mark.parametrize("command", ["build-att", "eval pairs", "profile att"])
def test_an_address_of_the_checkpoint_must_be_named(
    run: Path, server: WebServer, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "t")] if command == "build-att" else []
    options = [*command.split(), "--ckpt", str(run / "last.pt"), *out, "--threads", "1"]
    assert main(options) == 2
    message = capsys.readouterr().err
    address = f"{server.url}/00000.tar"
    assert f"error: the checkpoint's images are at {address}: if you trust it, name it with --data\n" in message
    assert message.count("\n") == 1
    assert server.requests == []
    if command == "build-att":
        assert main([*options, "--data", address]) == 0
        assert server.requests


def test_a_run_of_ones_own_is_resumed(server: WebServer, tmp_path: Path, tiny_yaml: Path) -> None:
    values = ["saga.epochs=1", "attention.period=1", "evaluate=null", "data.val=null"]
    address = f"data.train={server.url}/{{00000..00002}}.tar"
    command = ["train", "--config", str(tiny_yaml), "--out", str(tmp_path / "own"), "--set", *values, address]
    assert main(command) == 0
    config = tmp_path / "own" / "config.yaml"
    assert address.removeprefix("data.train=") in config.read_text()
    server.requests.clear()
    assert main(["train", "--config", str(config), "--resume"]) == 0
    assert {request.method for request in server.requests} == {"HEAD"}  # the kept index, and no epoch is left
