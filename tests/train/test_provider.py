"""``attention.provider``: D^att from another network's attention, or from a table, made once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import Crash, assert_same_run, crash_at, rows_of

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.checkpoint import load_model, read_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, WholePlan, open_loader, open_source
from saga_fast.runtime.files import sha256
from saga_fast.train import cycle
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
    expected = build_box_table(load_model(classifier), loader, AttentionPass(size=16, channels_last=True))
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
    for wrong in (["attention.provider=table"], ["attention.provider_table=x.safetensors"]):
        with pytest.raises(SagaError, match="needs a provider_table"):
            load_config(tiny_yaml, wrong)


def given_boxes(images: Path, path: Path) -> list[str]:
    """The lower right quarter of every image, and the overrides that take it."""
    source = open_source("folder", images / "train")
    boxes = np.tile(np.array([0.5, 0.5, 0.5, 0.5], np.float32), (len(source), 1))
    replace(BoxTable.whole(len(source)), boxes=boxes, metadata={"dataset": source.fingerprint}).save(path)
    return ["attention.provider=table", f"attention.provider_table={path}"]


def test_given_table_is_taken_as_it_is(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    given = given_boxes(images, tmp_path / "given.safetensors")
    runs = [tmp_path / "given", tmp_path / "own"]
    train(load_config(tiny_yaml, [f"out={runs[0]}", *given]))
    train(load_config(tiny_yaml, [f"out={runs[1]}"]))
    (renewal,) = rows_of(runs[0], "renewal")
    assert (renewal["epoch"], renewal["box_area"]) == (1, 0.25)
    assert (BoxTable.open(runs[0] / "att/epoch_0001.safetensors").boxes == 0.5).all()
    weights = [read_checkpoint(run / "last.pt")["model"] for run in runs]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_crash_and_resume_with_a_given_table(
    tiny_yaml: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = given_boxes(images, tmp_path / "given.safetensors")
    reference, run = tmp_path / "reference", tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={reference}", *given]))
    with monkeypatch.context() as patch:
        crash_at(patch, cycle, "train_epoch", 4)
        with pytest.raises(Crash):
            train(load_config(tiny_yaml, [f"out={run}", *given]))
    train(load_config(tiny_yaml, [f"out={run}", *given]), resume=True)
    assert_same_run(run, reference)


def test_wrong_table_is_refused_before_anything_is_trained(tiny_yaml: Path, tmp_path: Path) -> None:
    given = tmp_path / "other.safetensors"
    replace(BoxTable.whole(41), metadata={"dataset": "another"}).save(given)
    for path, message in ((given, "was made for data set another"), (tmp_path / "none", "no such box table")):
        with pytest.raises(SagaError, match=message):
            train(
                load_config(
                    tiny_yaml,
                    [f"out={tmp_path / 'run'}", "attention.provider=table", f"attention.provider_table={path}"],
                )
            )
    assert not (tmp_path / "run").exists()


def test_attention_pass_has_a_size_of_its_own(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={run}", "attention.input_size=32", "plain.epochs=1", "saga.epochs=1"]))
    table = BoxTable.open(run / "att/epoch_0001.safetensors")
    assert table.metadata["size"] == "32"  # the crops' is 16
    edges = table.boxes * 32
    np.testing.assert_allclose(edges, np.rint(edges), atol=1e-4)
    assert (table.boxes * 16 % 1 > 1e-3).any()
    with pytest.raises(SagaError, match="size must be at least 1, got 0"):
        load_config(tiny_yaml, ["attention.input_size=0"])


def test_own_attention_is_the_default(finished_run: Path) -> None:
    assert read_checkpoint(finished_run / "last.pt")["config"]["attention"]["provider"] == "self"
