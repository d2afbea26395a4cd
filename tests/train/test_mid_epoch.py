"""Checkpoints within an epoch: a run goes on at the very batch, and ends like one that was never killed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from run_folders import DINO, MOCO, Crash, assert_same_run, crash_at, rows_of, spoiled_copy

from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.train import step
from saga_fast.train.cycle import train

EVERY = "checkpoint.every_steps=2"  # of 5 steps: after the second and the fourth
INSDIS = "method={name: insdis, projection_dim: 12, negatives: 16}"


@pytest.mark.parametrize("method", [MOCO, INSDIS, DINO], ids=["moco", "insdis", "dino"])
def test_killed_after_some_steps(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """In every epoch, before and after the one checkpoint and the other, with a renewal in the second and fourth."""
    reference, out = tmp_path / "reference", tmp_path / "run"
    decay = "plain.weight_decay=[0.001, 0.01]"
    train(load_config(tiny_yaml, [f"out={reference}", method, decay]))
    config = load_config(tiny_yaml, [f"out={out}", method, decay, EVERY])
    for kill, position in ((4, (0, 2)), (6, (1, 2)), (4, (2, 0)), (5, (2, 4)), (5, (3, 2)), (5, (4, 0))):
        with monkeypatch.context() as patch:
            crash_at(patch, step, "views_of_batch", kill)
            with pytest.raises(Crash):
                train(config, resume=True)
        state = read_checkpoint(out / "last.pt")
        assert (state["epoch"], (state["so_far"] or {"done": 0})["done"]) == position
    train(config, resume=True)
    state = read_checkpoint(out / "last.pt")
    assert state["config"]["checkpoint"]["every_steps"] == 2
    del state["config"]["checkpoint"]["every_steps"], state["format"], state["version"]
    save_checkpoint(out / "last.pt", state)
    expected = read_checkpoint(reference / "last.pt")
    del expected["config"]["checkpoint"]["every_steps"], expected["format"], expected["version"]
    save_checkpoint(reference / "last.pt", expected)
    assert_same_run(out, reference)


def test_bad_images_found_before_the_kill(
    tiny_yaml: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the epoch keeps its order, and the next one leaves them out."""
    data = spoiled_copy(images, tmp_path / "data")
    overrides = [f"data={{train: {data}, threads: 2, max_bad_fraction: 0.1}}", "evaluate=null", "attention=null", EVERY]
    train(load_config(tiny_yaml, [f"out={tmp_path / 'reference'}", *overrides]))
    for call in (4, 5, 9):
        config = load_config(tiny_yaml, [f"out={tmp_path / f'run{call}'}", *overrides])
        with monkeypatch.context() as patch:
            crash_at(patch, step, "sample_photometrics", call)
            with pytest.raises(Crash):
                train(config)
        train(config, resume=True)
        assert_same_run(tmp_path / f"run{call}", tmp_path / "reference")


@pytest.mark.parametrize("last", [2, 5, 10])
def test_sigterm(
    tiny_yaml: Path, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """The step is finished and saved; 5 is an epoch's last, after which nothing is done twice."""
    out, real, calls = tmp_path / "run", step.views_of_batch, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    config = load_config(tiny_yaml, [f"out={out}"])
    with monkeypatch.context() as patch:
        patch.setattr(step, "views_of_batch", interrupted)
        with pytest.raises(SystemExit) as caught:
            train(config)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    state = read_checkpoint(out / "last.pt")
    assert 5 * state["epoch"] + state["so_far"]["done"] == last
    train(config, resume=True)
    assert_same_run(out, finished_run)


def test_sigterm_in_the_attention_pass(
    tiny_yaml: Path, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saga_fast.attention import build as attention

    out, real, calls = tmp_path / "run", attention.boxes_of_batch, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    config = load_config(tiny_yaml, [f"out={out}"])
    with monkeypatch.context() as patch:
        patch.setattr(attention, "boxes_of_batch", interrupted)
        with pytest.raises(SystemExit):
            train(config)
        assert len(list((out / "att").glob(".*.parts/part_*"))) == 1
        assert rows_of(out, "renewal") == []
        calls.extend([1, 1])
        before = len(calls)
        train(config, resume=True)
    assert len(calls) - before == 4 + 6  # of the first table's six batches the first two were there
    assert not list((out / "att").glob(".*"))
    assert_same_run(out, finished_run)


@pytest.mark.parametrize("key", ["every_steps", "keep_every"])
def test_numbers_are_checked(tiny_yaml: Path, key: str) -> None:
    with pytest.raises(SagaError, match=f"checkpoint: {key} must be at least 1, got 0"):
        load_config(tiny_yaml, [f"checkpoint.{key}=0"])
