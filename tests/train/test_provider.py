"""``attention.provider: supervised``: D^att from another network's attention, made once."""

from pathlib import Path

import numpy as np
import pytest
from run_folders import Crash, assert_same_run, crash_at, rows_of

from saga_fast.attention import build_box_table
from saga_fast.checkpoint import load_model, read_checkpoint
from saga_fast.errors import SagaError
from saga_fast.files import sha256
from saga_fast.loaders import BoxTable, WholePlan, open_loader
from saga_fast.train import cycle
from saga_fast.train.config import load_config
from saga_fast.train.cycle import train


@pytest.fixture(scope="module")
def classifier(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network than the one that is trained; for its boxes it does not matter what its z stand for."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return train(load_config(tiny_yaml, [f"out={folder}", "seed=5", "saga.epochs=0"]))


def overrides(run: Path, classifier: Path) -> list[str]:
    return [f"out={run}", "attention.provider=supervised", f"attention.provider_ckpt={classifier}"]


def test_boxes_are_the_classifiers(classifier: Path, tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_config(tiny_yaml, overrides(run, classifier)))
    assert [row["epoch"] for row in rows_of(run, "renewal")] == [1]  # a period of 2 would renew it at 3
    table = BoxTable.open(run / "att/epoch_0001.safetensors")
    assert table.metadata["checkpoint"] == sha256(classifier)
    loader = open_loader("folder", images / "train", WholePlan(size=16), batch_size=8)
    expected = build_box_table(load_model(classifier), loader, channels_last=True)
    np.testing.assert_allclose(table.boxes, expected.boxes, atol=0.07)  # a cell of the map, where rounding decides
    assert np.mean(table.boxes == expected.boxes) > 0.95


def test_crash_and_resume(classifier: Path, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    train(load_config(tiny_yaml, overrides(reference, classifier)))
    with monkeypatch.context() as patch:
        crash_at(patch, cycle, "train_epoch", 4)
        with pytest.raises(Crash):
            train(load_config(tiny_yaml, overrides(run, classifier)))
    train(load_config(tiny_yaml, overrides(run, classifier)), resume=True)
    assert_same_run(run, reference)


def test_missing_classifier_is_refused_before_anything_is_trained(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(SagaError, match="no such checkpoint"):
        train(load_config(tiny_yaml, overrides(run, tmp_path / "none.pt")))
    assert not run.exists()


def test_provider_and_checkpoint_go_together(tiny_yaml: Path) -> None:
    for wrong in (["attention.provider=supervised"], ["attention.provider_ckpt=x.pt"]):
        with pytest.raises(SagaError, match="needs a provider_ckpt"):
            load_config(tiny_yaml, wrong)


def test_own_attention_is_the_default(finished_run: Path) -> None:
    assert read_checkpoint(finished_run / "last.pt")["config"]["attention"]["provider"] == "self"
