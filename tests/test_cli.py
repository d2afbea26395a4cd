"""The command line: its output, and that a user's mistake is one line on stderr and exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_fast import __version__
from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.loaders import ImageFolder
from saga_fast.train import cycle
from saga_fast.train.cycle import train

COMMANDS = [
    ["demo"],
    ["train"],
    ["build-att"],
    ["eval"],
    ["eval", "knn"],
    ["eval", "linear"],
    ["eval", "boxes"],
    ["show-att"],
    ["eval", "pairs"],
    ["report"],
    ["reproduce"],
    ["import"],
    ["export"],
]

Refuses = Callable[..., None]


# ---------------------------------------------------------------- help and usage


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: saga-fast", *command]))
    assert err == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command[0] in out for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"saga-fast {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["build-att"], ["eval"], ["eval", "knn"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: saga-fast" in capsys.readouterr().err


def test_interrupt(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saga_fast.cli.train.train", interrupt)
    assert main(["train", "--config", str(tiny_yaml)]) == 130
    assert capsys.readouterr().err == "saga-fast: interrupted\n"


def test_internal_error_is_raised(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("internal")

    monkeypatch.setattr("saga_fast.cli.train.train", fail)
    with pytest.raises(RuntimeError, match="internal"):
        main(["train", "--config", str(tiny_yaml)])


# ---------------------------------------------------------------- train


def test_train_prints_the_checkpoint(tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    overrides = ["--set", "saga.epochs=1", "evaluate=null", "--set", "plain.epochs=0"]
    assert main(["train", "--config", str(tiny_yaml), "--out", str(run), *overrides]) == 0
    assert capsys.readouterr().out == f"{run / 'last.pt'}\n"
    assert read_checkpoint(run / "last.pt")["epoch"] == 1
    assert load_config(run / "config.yaml").out == str(run)


def test_train_from_a_checkpoint(ckpt: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--config", str(tiny_yaml), "--out", str(run), "--ckpt", str(ckpt)]
    assert main([*arguments, "--set", "saga.epochs=1", "evaluate=null"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["epoch"]) for row in rows] == [("renewal", 1), ("epoch", 2)]


def test_train_refuses_missing_files(tiny_yaml: Path, tmp_path: Path, refuses: Refuses) -> None:
    run, none = tmp_path / "run", tmp_path / "none"
    refuses(["train", "--config", none], none, "No such file")
    refuses(["train", "--config", tiny_yaml, "--out", run, "--set", f"data.train={none}"], "image folder", none)
    refuses(["train", "--config", tiny_yaml, "--out", run, "--set", f"data.val={none}"], "image folder", none)
    refuses(["train", "--config", tiny_yaml, "--out", run, "--ckpt", none], "no such checkpoint", none)
    none.mkdir()
    refuses(["train", "--config", tiny_yaml, "--out", run, "--set", f"data.train={none}"], "no image in", none)
    assert not run.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("crop.sise=3", ["unknown key crop.sise"]),
        ("epochs=3", ["unknown key epochs"]),
        ("batch_size=some", ["batch_size", "'some'"]),
        ("batch_size=100", ["batch_size 100", "41 images"]),
        ("attention.delta=1.5", ["delta", "1.5"]),
        ("method.name=swav", ["'swav'", "simclr, moco"]),
        ("encoder.name=renset18", ["'renset18'", "resnet18"]),
        ("encoder={name: test_vit_relpos}", ["'test_vit_relpos'", "no convolutional map"]),
        ("data.engine=dalli", ["no such engine", "'dalli'", "folder"]),
        ("data.threads=0", ["threads", "0"]),
        ("data.prefetch=-1", ["prefetch", "-1"]),
        ("data.classes=none.txt", ["none.txt"]),
        ("nonsense", ["key=value", "'nonsense'"]),
    ],
)
def test_train_refuses_values(
    tiny_yaml: Path, tmp_path: Path, refuses: Refuses, override: str, words: list[str]
) -> None:
    refuses(["train", "--config", tiny_yaml, "--out", tmp_path / "run", "--set", override], *words)


def test_train_refuses_a_run_in_use(finished_run: Path, tiny_yaml: Path, refuses: Refuses) -> None:
    arguments = ["train", "--config", tiny_yaml, "--out", finished_run]
    refuses(arguments, finished_run, "--resume")
    refuses([*arguments, "--resume", "--set", "seed=4"], finished_run, "another seed")


def test_train_refuses_output_that_cannot_be_written(tiny_yaml: Path, tmp_path: Path, refuses: Refuses) -> None:
    """A folder inside a regular file: even root cannot write there."""
    file = tmp_path / "file"
    file.write_text("mine")
    refuses(["train", "--config", tiny_yaml, "--out", file / "run"], file, "Not a directory")
    assert file.read_text() == "mine"


def test_train_refuses_a_loss_that_is_not_finite(tiny_yaml: Path, tmp_path: Path, refuses: Refuses) -> None:
    arguments = ["train", "--config", tiny_yaml, "--out", tmp_path / "run", "--set", "plain.lr=1e20", "evaluate=null"]
    refuses(arguments, "not finite", "1e+20")


@pytest.fixture
def interrupted(tiny_yaml: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run that was interrupted before its first SAGA epoch was saved, and its copy of the images."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(images / "train", data)
    saved = 0

    def stop(*arguments: Any) -> None:
        nonlocal saved
        saved += 1
        real(*arguments)
        if saved == 3:
            raise KeyboardInterrupt

    real = save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(cycle, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(tiny_yaml, [f"out={run}", f"data.train={data}", "evaluate=null"]))
    return run, data


def test_resume_refuses_a_missing_table(interrupted: tuple[Path, Path], refuses: Refuses) -> None:
    run, _ = interrupted
    (run / "att" / "epoch_0001.safetensors").unlink()
    refuses(["train", "--config", run / "config.yaml", "--resume"], run / "att" / "epoch_0001.safetensors", "missing")


def test_resume_refuses_another_data_set(interrupted: tuple[Path, Path], refuses: Refuses) -> None:
    run, data = interrupted
    before = ImageFolder(data).fingerprint
    shutil.copy(data / "cat" / "000.jpg", data / "cat" / "new.jpg")
    refuses(["train", "--config", run / "config.yaml", "--resume"], before, ImageFolder(data).fingerprint)


def test_resume_refuses_a_broken_checkpoint(interrupted: tuple[Path, Path], refuses: Refuses) -> None:
    run, _ = interrupted
    data = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(data[:1000])
    refuses(["train", "--config", run / "config.yaml", "--resume"], "cannot read the checkpoint", run / "last.pt")


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("command", ["build-att", "eval knn", "train"])
def test_invalid_checkpoints(
    ckpt: Path, tiny_yaml: Path, images: Path, tmp_path: Path, refuses: Refuses, command: str
) -> None:
    options: dict[str, list[Any]] = {
        "build-att": ["--out", tmp_path / "a.safetensors"],
        "eval knn": ["--data", images / "val"],
        "train": ["--config", tiny_yaml, "--out", tmp_path / "run"],
    }
    arguments = [*command.split(), *options[command], "--ckpt"]
    cut, other = tmp_path / "cut.pt", tmp_path / "other.pt"
    cut.write_bytes(ckpt.read_bytes()[:-500])
    torch.save({"state_dict": {}}, other)
    refuses([*arguments, tmp_path / "none.pt"], "no such checkpoint", tmp_path / "none.pt")
    refuses([*arguments, cut], "cannot read the checkpoint", cut)
    refuses([*arguments, other], "is not a saga-fast checkpoint", other)
