"""A stranger's encoder.args open no connection, read no further file and write none, on every way in."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from saga_fast import load_model
from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.models.encoder import ARCHITECTURE_ARGUMENTS, EncoderConfig

_events: list[str] | None = None


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is None:
        return
    if event == "open" and (set("wxa+") & set(str(arguments[1] or "")) or int(arguments[2] or 0) & 0o1103):
        _events.append(f"wrote {arguments[0]}")
    elif event in ("socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen", "os.system"):
        _events.append(f"{event} {arguments[:2]}")


sys.addaudithook(_record)


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The connections, processes and writes of the block."""
    global _events
    _events = []
    try:
        yield _events
    finally:
        _events = None


def hostile(folder: Path) -> dict[str, dict[str, Any]]:
    """encoder.args that timm.create_model would fetch, read or write files for."""
    payload = folder / "payload.pth"
    payload.write_bytes(b"import os; os.system('touch PWNED')")
    return {
        "url": {"pretrained": True, "cache_dir": str(folder / "site"), "pretrained_cfg": {"url": payload.as_uri()}},
        "http": {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"}},
        "file": {"pretrained": True, "pretrained_cfg": {"file": str(payload)}},
        "overlay": {"pretrained_cfg_overlay": {"url": payload.as_uri()}, "pretrained": True},
        "checkpoint_path": {"checkpoint_path": str(payload)},
        "cache_dir": {"cache_dir": str(folder / "site")},
        "hub": {"pretrained_cfg": "hf-hub:nobody/nothing", "pretrained": True},
        "scriptable": {"scriptable": True},
    }


NAMES = ("url", "http", "file", "overlay", "checkpoint_path", "cache_dir", "hub", "scriptable")


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint(name: str, ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(ckpt, weights_only=True)
    content["config"]["encoder"]["args"] |= hostile(tmp_path)[name]
    run = tmp_path / "run"
    shutil.copytree(ckpt.parent, run)
    path = run / "last.pt"
    torch.save(content, path)
    with (
        recorded() as events,
        pytest.raises(SagaError, match=r"last.pt \(config\): encoder: encoder.args\..* remove it"),
    ):
        load_model(path)
    assert events == []
    for command in (
        ["build-att", "--ckpt", path, "--out", tmp_path / "t"],
        ["export", path, "--to", "timm", "--out", tmp_path / "x.pth"],
        ["eval", "knn", "--ckpt", path, "--data", images, "--k", "5"],
        ["eval", "pairs", "--ckpt", path],
        ["profile", "att", "--ckpt", path],
    ):
        assert main([str(part) for part in command]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0  # without heatmaps
    assert {path.name for path in tmp_path.iterdir()} == {"payload.pth", "run", "r.html"}


@pytest.mark.parametrize("name", NAMES)
def test_config(name: str, tiny_values: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = tiny_values()
    values["encoder"]["args"] |= hostile(tmp_path)[name]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    for command in ("train", "profile train"):
        assert main([*command.split(), "--config", str(path)]) == 2
        assert "encoder.args." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"payload.pth", "config.yaml"}


def test_import_override(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), tmp_path / "tv.pth")
    command = ["import", str(tmp_path / "tv.pth"), "--out", str(tmp_path / "i.pt")]
    assert main([*command, "--set", "encoder.args={pretrained: true}"]) == 2
    assert "encoder.args.pretrained" in capsys.readouterr().err
    assert not (tmp_path / "i.pt").exists()


@pytest.mark.parametrize(
    "args",
    [
        {"layers": [10**6] * 4},
        {"channels": [10**9, 1, 1, 1]},
        {"channels": [float("nan")]},
        {"layers": [500] * 4, "channels": [16000] * 4},
        {"layers": {"a": 1}},
        {"act_layer": ["x"] * 1000},
    ],
    ids=str,
)
def test_sizes_are_bounded_before_anything_is_allocated(args: dict[str, Any]) -> None:
    with pytest.raises(SagaError, match=r"encoder\.args"):
        EncoderConfig(args=args)


def test_no_allowed_argument_reads_or_writes_a_file() -> None:
    """timm.create_model's arguments for weights and configurations are not in the list."""
    import inspect

    import timm

    named = set(inspect.signature(timm.create_model).parameters) - {"kwargs", "model_name"}
    loading = {"cache_dir", "features_only", "in_chans", "num_classes", "pretrained_strict", "checkpoint_path"}
    assert ARCHITECTURE_ARGUMENTS.isdisjoint(named | loading)
