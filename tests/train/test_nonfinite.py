"""A loss that is not finite: where it began is named, nothing of it is saved, and a few such steps can be left out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import MOCO, crash_at, rows_of

from saga_fast.checkpoint import read_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.train import step, steps
from saga_fast.train.cycle import train
from saga_fast.train.step import Undo

INSDIS_NCE = "method={name: insdis, projection_dim: 12, negatives: 16, loss: nce}"
BASE = ["attention=null", "evaluate=null"]


def spoil(monkeypatch: pytest.MonkeyPatch, *bad: int, value: float = math.nan) -> list[list[int]]:
    """Spoil the views of these steps of the run, from 1; the indices of every step's batch."""
    real, seen = step.views_of_batch, []

    def spoiled(training: Any, batch: Any, number: int) -> Any:
        seen.append(batch.index.tolist())
        views = real(training, batch, number)
        if len(seen) in bad:
            views[0][0] = value
        return views

    monkeypatch.setattr(step, "views_of_batch", spoiled)
    return seen


@pytest.mark.parametrize("every", [50, 3, 1])
def test_step_images_and_checkpoint_are_named(
    tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(steps, "CHECK_EVERY", every)
    out, seen = tmp_path / "run", spoil(monkeypatch, 9)
    with pytest.raises(SagaError) as caught:
        train(load_config(tiny_yaml, [f"out={out}", *BASE, "checkpoint.every_steps=2"]))
    message = str(caught.value)
    assert "the loss is not finite since step 3 of epoch 2: loss nan, images" in message
    assert ", ".join(map(str, seen[8])) in message
    assert message.endswith("last.pt holds epoch 1 and 2 steps of the next")
    assert len(seen) == {50: 9, 3: 9, 1: 9}[every]  # the checkpoint after the fourth step is not made
    listed = [int(line.split("\t")[0]) for line in (out / "nonfinite.txt").read_text().splitlines()]
    assert listed == seen[8]
    state = read_checkpoint(out / "last.pt")
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_found_at_the_epochs_end(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spoil(monkeypatch, 6)
    with pytest.raises(SagaError, match=r"since step 0 of epoch 2: .*last.pt holds epoch 1$"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *BASE]))
    assert len(seen) == 10


@pytest.mark.parametrize(
    ("bad", "options", "said"),
    [
        (5, [], "since step 4 of epoch 1: .* last.pt holds epoch 0$"),  # an epoch's last
        (7, ["checkpoint.every_steps=2"], "since step 1 of epoch 2: .* last.pt holds epoch 1$"),
        (7, ["skip_nonfinite=1"], None),
    ],
)
def test_gradient_of_a_finite_loss(
    tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, options: list[str], said: str | None
) -> None:
    """Its step has a good loss and leaves weights that are not numbers, just before they would be saved."""
    out, calls = tmp_path / "run", 0
    real: Any = torch.Tensor.backward

    def spoiled(loss: torch.Tensor, *arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        real(loss * math.nan if calls == bad else loss, *arguments, **more)

    monkeypatch.setattr(torch.Tensor, "backward", spoiled)
    config = load_config(tiny_yaml, [f"out={out}", *BASE, *options])
    if said is None:
        train(config)
    else:
        with pytest.raises(SagaError, match=f"the gradient is not finite {said}"):
            train(config)
    state = read_checkpoint(out / "last.pt")
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


@pytest.mark.parametrize(
    ("method", "parts"), [(MOCO, 1), (INSDIS_NCE, 1), (MOCO, 4)], ids=["moco", "insdis nce", "moco in parts"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_skipped_step_leaves_no_trace(
    tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, parts: int, value: float
) -> None:
    """The very first one, too, which gives NCE its constant and follows no other; one part of four is spoilt."""
    out = tmp_path / "run"
    states: list[dict[str, torch.Tensor]] = []
    real = Undo.restore

    def restore(undo: Undo) -> None:
        real(undo)
        states.append({name: tensor.clone() for name, tensor in model[0].state_dict().items()})

    model: list[torch.nn.Module] = []
    begin = Undo.__init__

    def remember(undo: Undo, method: Any) -> None:
        model[:] = [method]
        begin(undo, method)

    monkeypatch.setattr(Undo, "restore", restore)
    monkeypatch.setattr(Undo, "__init__", remember)
    spoil(monkeypatch, 1, 8, value=value)
    overrides = [f"out={out}", *BASE, method, "skip_nonfinite=2", "saga.epochs=1", "checkpoint.keep_every=1"]
    train(load_config(tiny_yaml, [*overrides, f"accumulate={parts}"]))
    assert [row["skipped"] for row in rows_of(out, "epoch")] == [1, 1]
    assert all(math.isfinite(row["loss"]) for row in rows_of(out, "epoch"))
    fresh = read_checkpoint(out / "epoch_0000.pt")["model"]
    for name, tensor in fresh.items():
        assert torch.equal(states[0][name], tensor), name
    last = read_checkpoint(out / "last.pt")
    assert last["skipped"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in last["model"].values())
    if method == MOCO:
        assert int(last["model"]["queue_pointer"]) == 8 * 8 % 20
        assert int(last["model"]["key_encoder.backbone.bn1.num_batches_tracked"]) == 8 * parts


def test_one_too_many(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen = tmp_path / "run", spoil(monkeypatch, 2, 7, 8)
    with pytest.raises(SagaError, match=r"since step 2 of epoch 2: .*last.pt holds epoch 1$"):
        train(load_config(tiny_yaml, [f"out={out}", *BASE, "skip_nonfinite=2"]))
    assert len(seen) == 8
    monkeypatch.undo()
    train(load_config(tiny_yaml, [f"out={out}", *BASE]), resume=True)  # without the option, from epoch 1
    assert read_checkpoint(out / "last.pt")["skipped"] == 1


def test_skipping_changes_nothing_where_all_is_finite(tiny_yaml: Path, tmp_path: Path, finished_run: Path) -> None:
    out = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={out}", "skip_nonfinite=3"]))
    own, expected = (read_checkpoint(folder / "last.pt")["model"] for folder in (out, finished_run))
    for name, tensor in own.items():
        assert torch.equal(tensor, expected[name]), name


def test_kill_after_a_skipped_step(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, overrides = tmp_path / "run", [*BASE, "skip_nonfinite=1", "checkpoint.every_steps=1"]
    with monkeypatch.context() as patch:
        spoil(patch, 2)
        crash_at(patch, step, "sample_photometrics", 4)
        with pytest.raises(BaseException):  # noqa: B017
            train(load_config(tiny_yaml, [f"out={out}", *overrides]))
    assert read_checkpoint(out / "last.pt")["so_far"]["skipped"] == 1
    train(load_config(tiny_yaml, [f"out={out}", *overrides]), resume=True)
    assert [row["skipped"] for row in rows_of(out, "epoch")] == [1, 0, 0, 0, 0]


def test_number_is_checked(tiny_yaml: Path) -> None:
    with pytest.raises(SagaError, match="skip_nonfinite must not be negative, got -1"):
        load_config(tiny_yaml, ["skip_nonfinite=-1"])
