"""Each method's queue, bank, constant and draws come back: a run that was killed ends like one that was not."""

from pathlib import Path

import pytest
from run_folders import DINO, Crash, assert_same_run, crash_at, rows_of

from saga_fast.config_file import load_config
from saga_fast.train import step
from saga_fast.train.cycle import train

METHODS = {
    "moco": "method={name: moco, projection_dim: 12, queue_size: 20, momentum: 0.9}",  # 20 % 8 != 0
    "insdis": "method={name: insdis, projection_dim: 12, negatives: 16}",
    "insdis nce": "method={name: insdis, projection_dim: 12, negatives: 16, loss: nce}",
    "cmc": "method={name: cmc, projection_dim: 12, negatives: 16, loss: nce}",
    "invspread": "method={name: invspread, projection_dim: 12}",
    "byol": "method={name: byol, projection_dim: 12, hidden_dim: 16, momentum: 0.9}",
    "dino": DINO,
    "pirl": "method={name: pirl, projection_dim: 12, negatives: 16, jigsaw_size: 24, jigsaw_patch: 7}",
}


@pytest.mark.parametrize("name", METHODS)
def test_crash_and_resume(name: str, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the third of five epochs, one after a renewal."""
    overrides = [METHODS[name], "saga.epochs=3"]
    reference, run = tmp_path / "reference", tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={reference}", *overrides]))
    with monkeypatch.context() as patch:
        groups = 2 if name in ("pirl", "dino") else 1
        crash_at(patch, step, "sample_photometrics", 13 * groups)
        with pytest.raises(Crash):
            train(load_config(tiny_yaml, [f"out={run}", *overrides]))
    assert len(rows_of(run, "epoch")) == 2
    train(load_config(tiny_yaml, [f"out={run}", *overrides]), resume=True)
    assert_same_run(run, reference)
    assert len(list((run / "att").iterdir())) == 2
