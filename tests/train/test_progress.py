"""What a method's schedules are told: the epochs of the run, and the finished part of each phase."""

from pathlib import Path

import pytest
from run_folders import Crash, crash_at

from saga_fast.config_file import load_config
from saga_fast.methods import Progress
from saga_fast.methods.byol import BYOL
from saga_fast.train import step
from saga_fast.train.cycle import train

BYOL_METHOD = "method={name: byol, projection_dim: 12, hidden_dim: 16}"
STEPS = 5
"""In an epoch of 41 images, in batches of 8."""
EXPECTED = [Progress(epochs=k / STEPS, phase=k / STEPS) for k in range(STEPS)]
EXPECTED += [Progress(epochs=1 + k / STEPS, phase=k / STEPS / 2) for k in range(2 * STEPS)]
"""A plain epoch and two SAGA epochs: a phase's schedule begins anew, epochs go on."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """The progress of every step from here on."""
    progress: list[Progress] = []
    real = BYOL.after_step

    def record(self: BYOL) -> None:
        progress.append(self.progress)
        real(self)

    monkeypatch.setattr(BYOL, "after_step", record)
    return progress


def assert_close(found: list[Progress], expected: list[Progress]) -> None:
    assert [at.epochs for at in found] == pytest.approx([at.epochs for at in expected])
    assert [at.phase for at in found] == pytest.approx([at.phase for at in expected])


def test_progress_of_every_step(
    tiny_yaml: Path, tmp_path: Path, recorded: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a run was killed within an epoch and resumed there."""
    overrides = [BYOL_METHOD, "evaluate=null", "saga.epochs=2", "checkpoint.every_steps=2"]
    config = load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *overrides])
    with monkeypatch.context() as patch:
        crash_at(patch, step, "views_of_batch", 9)  # after a checkpoint at the second step of the second epoch
        with pytest.raises(Crash):
            train(config)
    assert_close(recorded, EXPECTED[:8])
    recorded.clear()
    train(config, resume=True)
    assert_close(recorded, EXPECTED[7:])


def test_checkpoint_counts_the_plain_epochs(tiny_yaml: Path, tmp_path: Path, recorded: list[Progress]) -> None:
    plain = [f"out={tmp_path / 'plain'}", BYOL_METHOD, "evaluate=null", "saga.epochs=0"]
    ckpt = train(load_config(tiny_yaml, plain))
    recorded.clear()
    saga = [f"out={tmp_path / 'saga'}", BYOL_METHOD, "evaluate=null", "saga.epochs=2", "attention=null"]
    train(load_config(tiny_yaml, saga), ckpt=ckpt)
    assert_close(recorded, EXPECTED[STEPS:])
