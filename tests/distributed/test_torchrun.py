"""The command line under torchrun: a killed process is started again, and the run ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from processes import run

from saga_fast.checkpoint import read_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.loaders import BoxTable
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train.cycle import train

sys.path.append(str(Path(__file__).parent.parent / "train"))
from run_folders import assert_same_run


def torchrun(log: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen[bytes]:
    """Start ``saga-fast ARGUMENTS`` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", "-m", "saga_fast", *arguments]
    with log.open("wb") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def run_folder(config: Path, out: Path, overrides: list[str], resume: bool) -> None:
    train(load_config(config, [f"out={out}", *overrides]), resume=resume)


def worker(launcher: subprocess.Popen[bytes], rank: int) -> psutil.Process:
    """The launcher's process of this rank."""
    children = psutil.Process(launcher.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def wait_for_epoch(out: Path, number: int, launcher: subprocess.Popen[bytes]) -> None:
    while launcher.poll() is None and not any(row["epoch"] >= number for row in read_metrics(out)):
        time.sleep(0.005)


def test_killed_rank_is_started_again(tiny_yaml: Path, tmp_path: Path) -> None:
    """kill -9 of rank 1 in epoch 3 or soon after, then SIGTERM to the launcher, which hands it on, then a new start.

    The reference is a run in two processes that nothing happened to.
    """
    overrides = ["evaluate=null", "saga.epochs=13", "attention.period=4", "checkpoint.every_steps=2"]
    reference, out, log = tmp_path / "reference", tmp_path / "out", tmp_path / "log.txt"
    common = ["train", "--resume", "--config", str(tiny_yaml), "--set", *overrides]

    launcher = torchrun(log, *common, "--out", str(out), restarts=1)
    wait_for_epoch(out, 3, launcher)
    worker(launcher, 1).send_signal(signal.SIGKILL)
    wait_for_epoch(out, 7, launcher)
    assert launcher.poll() is None, log.read_text()
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60.0)
    text = log.read_text()
    assert "go on with --resume" in text, text
    state = read_checkpoint(out / "last.pt")
    assert 6 <= state["epoch"] < 14, text

    run(2, run_folder, tiny_yaml, out, overrides, True)
    run(2, run_folder, tiny_yaml, reference, overrides, False)
    assert_same_run(out, reference)


def test_build_att(finished_run: Path, tmp_path: Path) -> None:
    """Two processes write one table, as one process does."""
    log, build = tmp_path / "log.txt", ["build-att", "--ckpt", str(finished_run / "last.pt"), "--out"]
    assert torchrun(log, *build, str(tmp_path / "two.safetensors")).wait(60.0) == 0, log.read_text()
    assert main([*build, str(tmp_path / "one.safetensors")]) == 0
    two, one = (BoxTable.open(tmp_path / f"{name}.safetensors") for name in ("two", "one"))
    for column in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(two, column), getattr(one, column))
    assert two.metadata == one.metadata
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "one.safetensors", "two.safetensors"]


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


@pytest.mark.parametrize(
    "command",
    [
        ["knn", "--k", "1", "5", "--views", "att"],
        ["linear", "--epochs", "2", "--every", "1", "--batch-size", "8", "--lr", "0.3", "--views", "both"],
        ["pairs", "--images", "30", "--batch-size", "8", "--png", "OUT.png"],
    ],
    ids=["knn", "linear", "pairs"],
)
def test_evaluations_are_those_of_one_process(
    finished_run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """The same lines and rows; only a probe's loss is rounded otherwise. The training images are 41."""
    data, log = images / "train" if command[0] == "pairs" else images, tmp_path / "log.txt"
    common = ["--ckpt", str(finished_run / "last.pt"), "--data", str(data)]

    def arguments(name: str) -> list[str]:
        given = [word.replace("OUT", str(tmp_path / name)) for word in command]
        return ["eval", *given, *common, "--json", str(tmp_path / f"{name}.json")]

    assert main(arguments("one")) == 0
    said = capfd.readouterr().out.splitlines()
    assert torchrun(log, *arguments("two")).wait(120.0) == 0, log.read_text()
    assert [line for line in log.read_text().splitlines() if line.startswith(said[0].split()[0])] == said
    one, two = (rows_of(tmp_path / f"{name}.json") for name in ("one", "two"))
    if command[0] == "linear":
        losses, expected = ([row.pop("loss") for row in rows] for rows in (two, one))
        assert losses == pytest.approx(expected, rel=1e-5)
    assert two == one
    assert (tmp_path / "two.png").exists() == (command[0] == "pairs")


def epoch_of(probe: Path) -> int:
    return torch.load(probe, weights_only=True)["epoch"] if probe.exists() else 0


def wait_for_probe(probe: Path, epoch: int, launcher: subprocess.Popen[bytes]) -> None:
    while launcher.poll() is None and epoch_of(probe) < epoch:
        time.sleep(0.005)


def test_killed_probe_ends_as_one_that_was_not(finished_run: Path, images: Path, tmp_path: Path) -> None:
    """kill -9 of rank 1, after which torchrun starts both again, then SIGTERM to the launcher; one process ends it."""
    log, out, epochs = tmp_path / "log.txt", tmp_path / "out", 60
    common = ["--ckpt", str(finished_run / "last.pt"), "--data", str(images), "--lr", "0.3", "--batch-size", "8"]
    common = ["eval", "linear", *common, "--epochs", str(epochs), "--every", str(epochs)]
    launcher = torchrun(log, *common, "--out", str(out), restarts=1)
    wait_for_probe(out / "probe.pt", 3, launcher)
    worker(launcher, 1).send_signal(signal.SIGKILL)
    killed_at = epoch_of(out / "probe.pt")
    wait_for_probe(out / "probe.pt", killed_at + 3, launcher)
    assert launcher.poll() is None, log.read_text()
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60.0)
    assert killed_at + 3 <= epoch_of(out / "probe.pt") < epochs, log.read_text()
    text = log.read_text()
    assert text.count("Traceback") == text.count("SignalException: ") == 1  # torchrun's
    assert [path.name for path in out.iterdir()] == ["probe.pt"]

    for name in ("out", "reference"):
        assert main([*common, "--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")]) == 0
    (row,), (expected,) = (rows_of(tmp_path / f"{name}.json") for name in ("out", "reference"))
    assert row.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-4)
    assert row == expected


def test_ctrl_c_is_a_line(tiny_yaml: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to torchrun and to every process, torchrun hands it on as well, and has its own say."""
    log, out = tmp_path / "log.txt", tmp_path / "out"
    launcher = torchrun(log, "train", "--config", str(tiny_yaml), "--out", str(out), "--set", "saga.epochs=500")
    wait_for_epoch(out, 2, launcher)
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(60.0) != 0
    text = log.read_text()
    assert text.count("saga-fast: interrupted") == 1
    assert "terminate called" not in text
    assert text.count("Traceback") == text.count("SignalException: ") == 1  # torchrun's


@pytest.mark.parametrize("command", ["train", "eval linear"])
def test_error_is_a_line(tiny_yaml: Path, finished_run: Path, images: Path, tmp_path: Path, command: str) -> None:
    log = tmp_path / "log.txt"
    arguments = ["--config", str(tiny_yaml), "--out", str(tmp_path / "o"), "--set", "batch_size=9"]
    if command == "eval linear":
        arguments = ["--ckpt", str(finished_run / "last.pt"), "--data", str(images), "--batch-size", "9"]
    launcher = torchrun(log, *command.split(), *arguments)
    assert launcher.wait(60.0) == 1
    text = log.read_text()
    assert "error: batch_size 9 cannot be split evenly among 2 processes" in text
    assert "Traceback" not in text.split("torch.distributed.elastic")[0].split("failed (exitcode")[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["profile", "kernels"], "profile"), (["eval", "boxes", "--table", "t", "--data", "d"], "eval boxes")],
)
def test_commands_of_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], name: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert f"error: {name} runs in one process: start it without torchrun" in capsys.readouterr().err
