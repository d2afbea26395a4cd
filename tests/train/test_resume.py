"""A run that was killed, at whatever moment, ends like one that was not; and what cannot be resumed is refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import MOCO, Crash, assert_same_run, crash_at, leaves, rows_of, spoiled_copy

from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, ImageFolder
from saga_fast.train import cycle, renewal, step
from saga_fast.train.cycle import train
from saga_fast.train.folder import LOCK


@pytest.fixture(scope="module")
def finished_moco(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moco") / "finished"
    train(load_config(tiny_yaml, [f"out={folder}", MOCO]))
    return folder


# ---------------------------------------------------------------- what a run leaves behind


def test_runs_are_reproducible(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """What the comparisons below rest on; the number of decoding threads does not matter."""
    run = tmp_path / "run"
    torch.rand(7)
    train(load_config(tiny_yaml, [f"out={run}", "data.threads=1", "data.prefetch=0"]))
    state = read_checkpoint(run / "last.pt")
    reference = read_checkpoint(finished_run / "last.pt")
    state["config"]["data"] = reference["config"]["data"]
    save_checkpoint(run / "last.pt", {key: state[key] for key in state if key not in ("format", "version")})
    assert_same_run(run, finished_run)


def test_sigkill_in_the_saga_phase(tiny_yaml: Path, tmp_path: Path) -> None:
    """`kill -9` of a real process, in the middle of the six epochs between two renewals, then `--resume`."""
    overrides = ["saga.epochs=18", "attention.period=6", "evaluate.every=5"]
    reference, run = tmp_path / "reference", tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={reference}", *overrides]))

    command = ["train", "--config", str(tiny_yaml), "--out", str(run), "--set", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in another number of threads may round differently
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "saga_fast", *command], env=environment, stdout=log, stderr=log
        )
        while process.poll() is None and not any(row["epoch"] >= 3 for row in rows_of(run, "epoch")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    killed_at = read_checkpoint(run / "last.pt")["epoch"]
    assert 2 <= killed_at < 19

    assert main([*command, "--resume"]) == 0
    assert_same_run(run, reference)
    (resumed_in,) = [row["seconds"] for row in rows_of(run, "epoch") if row["epoch"] == killed_at + 1]
    assert resumed_in > 0.0


def half_written(_: Any, file: Any) -> None:
    file.write(b"PK\x03\x04 half of a checkpoint")
    raise Crash


CRASHES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    # 5 steps per epoch: the third step of the first, second and fourth epoch
    "first epoch": lambda m: crash_at(m, step, "sample_photometrics", 3),
    "after a renewal": lambda m: crash_at(m, step, "sample_photometrics", 8),
    "between renewals": lambda m: crash_at(m, step, "sample_photometrics", 13),
    "last epoch": lambda m: crash_at(m, step, "sample_photometrics", 23),
    "in the attention pass": lambda m: crash_at(m, renewal, "build_box_table", 2),
    "before a table is saved": lambda m: crash_at(m, renewal, "build_box_table", 2, after=True),
    "in an evaluation": lambda m: crash_at(m, cycle, "knn_accuracy", 4),
    "before the first checkpoint": lambda m: crash_at(m, cycle, "save_checkpoint", 1),
    "before a checkpoint": lambda m: crash_at(m, cycle, "save_checkpoint", 3),
    "after a checkpoint": lambda m: crash_at(m, cycle, "save_checkpoint", 4, after=True),
}


@pytest.mark.parametrize("moment", CRASHES)
def test_crash_and_resume(
    finished_moco: Path, tiny_yaml: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MoCo v2, whose queue, pointer and key encoder have to come back too."""
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}", MOCO])
    with monkeypatch.context() as patch:
        CRASHES[moment](patch)
        with pytest.raises(Crash):
            train(config)
    assert moment == "before the first checkpoint" or read_checkpoint(run / "last.pt")["epoch"] < 5
    assert train(config, resume=True) == run / "last.pt"
    assert_same_run(run, finished_moco)


def test_crash_twice(finished_run: Path, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}"])
    for call in (8, 7):
        with monkeypatch.context() as patch:
            crash_at(patch, step, "sample_photometrics", call)
            with pytest.raises(Crash):
                train(config, resume=True)
    train(config, resume=True)
    assert_same_run(run, finished_run)


def test_crash_while_a_checkpoint_is_written(
    finished_run: Path, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}"])
    with monkeypatch.context() as patch:
        crash_at(patch, step, "sample_photometrics", 11)  # epochs 1 and 2 are done
        with pytest.raises(Crash):
            train(config)
    before = (run / "last.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half_written)
        with pytest.raises(Crash):
            train(config, resume=True)
    assert (run / "last.pt").read_bytes() == before
    assert [row["epoch"] for row in rows_of(run, "epoch")] == [1, 2, 3]  # a row more than last.pt knows of
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "epoch": 4, "lo')  # as a process leaves it that dies while writing
    train(config, resume=True)
    assert_same_run(run, finished_run)


def test_crash_with_undecodable_images(
    tiny_yaml: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known bad images change the order of an epoch, so a resumed run has to know the same ones."""
    data = spoiled_copy(images, tmp_path / "data")
    overrides = [f"data={{train: {data}, threads: 2, max_bad_fraction: 0.1}}", "evaluate=null"]
    reference = tmp_path / "reference"
    train(load_config(tiny_yaml, [f"out={reference}", *overrides]))
    assert read_checkpoint(reference / "last.pt")["bad_images"] == [4, 31, 40]
    listed = [line.split("\t")[:2] for line in (reference / "bad_images.txt").read_text().splitlines()]
    assert listed == [["4", "cat/004.jpg"], ["31", "dog/011.jpg"], ["40", "dog/020.jpg"]]
    for call in (3, 7, 13):
        run = tmp_path / f"run{call}"
        config = load_config(tiny_yaml, [f"out={run}", *overrides])
        with monkeypatch.context() as patch:
            crash_at(patch, step, "sample_photometrics", call)
            with pytest.raises(Crash):
                train(config)
        train(config, resume=True)
        assert_same_run(run, reference)


@pytest.fixture
def interrupted(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that died in its fourth epoch, the last on the table of epoch 1's successor."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, step, "sample_photometrics", 13)
        with pytest.raises(Crash):
            train(load_config(tiny_yaml, [f"out={run}"]))
    return run


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=1", "seed"),
        ("batch_size=4", "batch_size"),
        ("saga.epochs=9", "saga"),
        ("attention.delta=0.5", "attention"),
        ("attention=null", "attention"),
        ("method.temperature=0.3", "method"),
        ("encoder.stem=medium", "encoder"),
        ("precision=bf16", "precision"),
        ("optimizer.momentum=0.5", "optimizer"),
    ],
)
def test_resume_with_another_config_is_refused(interrupted: Path, tiny_yaml: Path, override: str, named: str) -> None:
    before = (interrupted / "last.pt").read_bytes(), (interrupted / "metrics.jsonl").read_bytes()
    with pytest.raises(SagaError, match=rf"cannot resume {interrupted} with another {named}:"):
        train(load_config(tiny_yaml, [f"out={interrupted}", override]), resume=True)
    assert before == ((interrupted / "last.pt").read_bytes(), (interrupted / "metrics.jsonl").read_bytes())
    assert load_config(interrupted / "config.yaml") == load_config(tiny_yaml, [f"out={interrupted}"])


def test_resume_with_another_place_of_the_images(
    interrupted: Path, finished_run: Path, tiny_yaml: Path, images: Path, tmp_path: Path
) -> None:
    """What does not change the result may change: where the images lie, threads, checkpoints kept."""
    moved = tmp_path / "moved"
    shutil.copytree(images / "train", moved)
    overrides = [f"data.train={moved}", "data.threads=1", "checkpoint.keep_every=5"]
    train(load_config(tiny_yaml, [f"out={interrupted}", *overrides]), resume=True)
    assert (interrupted / "epoch_0005.pt").exists()
    own, expected = (read_checkpoint(run / "last.pt") for run in (interrupted, finished_run))
    for (name, tensor), (_, other) in zip(leaves(own["model"]), leaves(expected["model"]), strict=True):
        assert torch.equal(tensor, other), name


def test_resume_with_another_data_set_is_refused(interrupted: Path, tiny_yaml: Path, images: Path) -> None:
    own, other = (ImageFolder(images / name).fingerprint for name in ("train", "val"))
    with pytest.raises(SagaError, match=f"data set {own}, {images / 'val'} is {other}"):
        train(load_config(tiny_yaml, [f"out={interrupted}", f"data.train={images / 'val'}"]), resume=True)


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_resume_without_its_table_is_refused(interrupted: Path, tiny_yaml: Path, damage: str) -> None:
    table = interrupted / "att/epoch_0001.safetensors"
    if damage == "missing":
        table.unlink()
    else:
        BoxTable.whole(41).save(table)
    with pytest.raises(SagaError, match=rf"cannot resume {interrupted}: {table} is missing or not the table"):
        train(load_config(tiny_yaml, [f"out={interrupted}"]), resume=True)


def test_finished_run_returns_at_once(
    finished_run: Path, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = (run / "last.pt").read_bytes(), (run / "metrics.jsonl").read_text()
    for name in ("train_epoch", "knn_accuracy", "save_checkpoint"):
        crash_at(monkeypatch, cycle, name, 1)
    crash_at(monkeypatch, renewal, "build_box_table", 1)
    config = load_config(tiny_yaml, [f"out={run}"])
    assert train(config, resume=True) == run / "last.pt"
    assert before == ((run / "last.pt").read_bytes(), (run / "metrics.jsonl").read_text())


def test_run_folder_in_use_is_refused(finished_run: Path, tiny_yaml: Path) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    with pytest.raises(SagaError, match=f"{finished_run} holds a run already: .*--resume"):
        train(load_config(tiny_yaml, [f"out={finished_run}"]))
    assert before == {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}


def test_resume_without_a_run_starts_afresh(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).touch()  # as a run leaves it that was killed before its first checkpoint
    (run / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "loss": 5.0}\n')  # a start that came to nothing
    train(load_config(tiny_yaml, [f"out={run}"]), resume=True)
    assert_same_run(run, finished_run)


# ---------------------------------------------------------------- what can go wrong


def test_last_pt_comes_after_all_that_goes_with_it(
    tiny_yaml: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from it, or is finished with it, writes nothing of an earlier epoch again."""
    data, run, real = tmp_path / "data", tmp_path / "run", save_checkpoint
    shutil.copytree(images / "train", data)
    (data / "cat" / "004.jpg").write_bytes(b"")

    def crash(path: Path, content: dict[str, Any]) -> None:
        real(path, content)
        if path.name == "last.pt" and content["epoch"] == 1:
            raise Crash

    monkeypatch.setattr(cycle, "save_checkpoint", crash)
    overrides = [f"data={{train: {data}, max_bad_fraction: 0.1}}", "evaluate=null", "checkpoint.keep_every=1"]
    with pytest.raises(Crash):
        train(load_config(tiny_yaml, [f"out={run}", *overrides]))
    assert read_checkpoint(run / "last.pt")["epoch"] == 1
    assert read_checkpoint(run / "epoch_0001.pt")["epoch"] == 1
    assert "cat/004.jpg" in (run / "bad_images.txt").read_text()
