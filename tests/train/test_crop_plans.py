"""The crops of a run's epochs: whole images first, then attention crops from the last table."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_folders import DINO, MOCO, figures, rows_of

from saga_fast.checkpoint import read_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder
from saga_fast.loaders.folder.engine import FolderLoader
from saga_fast.train import cycle, epoch
from saga_fast.train.cycle import train


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CropPlan]:
    """The plan of every epoch that is trained from here on."""
    seen: list[CropPlan] = []
    real = epoch.train_epoch

    def record(*arguments: Any, **options: Any) -> Any:
        (loader,) = (value for value in arguments if isinstance(value, FolderLoader))
        assert isinstance(loader.plan, CropPlan)
        seen.append(loader.plan)
        return real(*arguments, **options)

    monkeypatch.setattr(cycle, "train_epoch", record)
    return seen


@pytest.mark.parametrize("views", ["att", "mixed", "union", "paste"])
def test_attention_views(tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan], views: str) -> None:
    run = tmp_path / "run"
    overrides = [f"out={run}", "evaluate=null", f"attention={{views: {views}, period: 2, share: 0.4, delta: 0.5}}"]
    train(load_config(tiny_yaml, overrides))
    assert [plan.table is not None for plan in plans] == [False, True, True, True, True]

    indices = np.arange(41)
    names = [None, *["att/epoch_0001.safetensors"] * 2, *["att/epoch_0003.safetensors"] * 2]
    whole = np.broadcast_to(np.array([0, 0, 1, 1], np.float32), (41, 4))
    for number, (plan, name) in enumerate(zip(plans, names, strict=True)):
        boxes = plan.boxes(number, indices)
        assert boxes.shape == (41, 3 if views == "paste" and name else 2, 4)
        own = BoxTable.open(run / name).boxes if name else whole
        if views == "att" or name is None:
            expected = [own, own]
        elif views == "mixed":
            expected = [whole, own]
        elif views == "paste":
            expected = [whole, own, own]
        else:
            as_crop = (boxes == own[:, None]).all((1, 2))
            as_whole = (boxes == whole[:, None]).all((1, 2))
            assert (as_crop | as_whole).all()  # both views, or none
            assert 0 < as_crop.sum() < 41
            continue
        np.testing.assert_array_equal(boxes, np.stack(expected, 1))
    assert not np.array_equal(BoxTable.open(run / "att/epoch_0001.safetensors").boxes, whole)


@pytest.mark.parametrize(
    ("views", "in_box"),
    [("mixed", [False, False, True, True]), ("att", [True] * 4), ("paste", [False, True, False, True, True])],
)
def test_global_and_local_views(
    tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan], views: str, in_box: list[bool]
) -> None:
    """DINO's two global views, then its two local ones; ``paste`` has a global view more, to be pasted on the first."""
    run = tmp_path / "run"
    overrides = [f"out={run}", "evaluate=null", "saga.epochs=1", DINO, f"attention={{views: {views}, delta: 0.5}}"]
    train(load_config(tiny_yaml, overrides))
    before, after = (plan.boxes(epoch, np.arange(41)) for epoch, plan in enumerate(plans))
    own, whole = BoxTable.open(run / "att/epoch_0001.safetensors").boxes, np.array([0, 0, 1, 1], np.float32)
    np.testing.assert_array_equal(before, np.broadcast_to(whole, (41, 4, 4)))
    assert after.shape == (41, len(in_box), 4)
    for view, expected in zip(np.moveaxis(after, 1, 0), in_box, strict=True):
        np.testing.assert_array_equal(view, own if expected else np.broadcast_to(whole, (41, 4)))


def test_crop_settings_reach_the_loader(tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan]) -> None:
    overrides = [f"out={tmp_path / 'run'}", "evaluate=null", "saga.epochs=1", "seed=3", "crop.ratio=[0.5, 2.0]"]
    train(load_config(tiny_yaml, [*overrides, "attention={min_side: 0.6, share: 0.3, crop: centred}"]))
    for plan in plans:
        assert (plan.size, plan.seed, plan.num_views) == (16, 3, 2)
        assert (plan.scale, plan.ratio) == ((0.2, 1.0), (0.5, 2.0))
    assert (plans[0].crop, plans[1].crop) == ("inside", "centred")
    assert (plans[1].min_side, plans[1].share) == (0.6, 0.3)


def test_attention_null_is_fine_tuning(tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan]) -> None:
    run = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={run}", "attention=null", "evaluate=null"]))
    assert all(plan.table is None for plan in plans)
    assert not (run / "att").exists()
    assert [row["phase"] for row in rows_of(run, "epoch")] == ["plain"] + ["saga"] * 4
    state = read_checkpoint(run / "last.pt")
    assert state["box_table"] is None
    assert state["epoch"] == 5


def test_ckpt_starts_the_saga_phase(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}", "saga.epochs=1", "checkpoint.keep_every=1"])
    train(config, ckpt=finished_run / "last.pt")
    start, given = read_checkpoint(run / "epoch_0001.pt"), read_checkpoint(finished_run / "last.pt")
    assert start["epoch"] == 1
    assert start["model"].keys() == given["model"].keys()
    assert all(torch.equal(tensor, given["model"][name]) for name, tensor in start["model"].items())
    assert start["optimizer"]["state"] == {}
    assert [(row["kind"], row["epoch"]) for row in figures(run) if row.get("layer") != "projector"] == [
        ("rankme", 1),
        ("knn", 1),
        ("renewal", 1),
        ("epoch", 2),
        ("rankme", 2),
        ("online", 2),
        ("knn", 2),
    ]
    given_top1 = [row["top1"] for row in rows_of(finished_run, "knn") if row["epoch"] == 5]
    assert [row["top1"] for row in rows_of(run, "knn")[:2]] == given_top1
    with pytest.raises(SagaError, match="no such checkpoint"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'other'}"]), ckpt=tmp_path / "none.pt")


@pytest.mark.parametrize("saga_epochs", [0, 1])
def test_fine_tuning_from_saga_epochs_is_a_warning(
    saga_epochs: int, tiny_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a run is no baseline without attention crops; a plain start is, and SAGA may have any start."""
    start = train(load_config(tiny_yaml, [f"out={tmp_path / 'start'}", f"saga.epochs={saga_epochs}", "evaluate=null"]))
    for name, attention in {"finetune": "null", "saga": "{period: 2}"}.items():
        caplog.clear()
        overrides = [f"out={tmp_path / name}", f"attention={attention}", "saga.epochs=1", "evaluate=null"]
        train(load_config(tiny_yaml, overrides), ckpt=start)
        messages = [record.getMessage() for record in caplog.records if "baseline" in record.getMessage()]
        if saga_epochs and name == "finetune":
            assert len(messages) == 1
            assert str(start) in messages[0]
            assert "no baseline without attention crops, start it from a plain checkpoint" in messages[0]
        else:
            assert messages == []


def test_ckpt_of_another_method_is_refused(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=r"last.pt lacks key_encoder"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", MOCO]), ckpt=finished_run / "last.pt")


def test_true_boxes_are_scored(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    rng = np.random.default_rng(0)
    truth = {path: [*rng.uniform(0.0, 0.3, 2), *rng.uniform(0.4, 0.7, 2)] for path in ImageFolder(data).paths}
    (data / "boxes.json").write_text(json.dumps(truth))
    run = tmp_path / "run"
    train(
        load_config(
            tiny_yaml,
            [
                f"out={run}",
                f"data={{train: {data}, true_boxes: true}}",
                "evaluate=null",
                "saga.epochs=1",
                "attention.delta=0.3",
            ],
        )
    )
    (row,) = rows_of(run, "renewal")
    boxes = BoxTable.open(run / row["table"]).boxes.tolist()
    overlaps = [overlap(box, true) for box, true in zip(boxes, truth.values(), strict=True)]
    assert row["iou"] == pytest.approx(sum(overlaps) / 41, rel=1e-5)
    assert row["corloc"] == pytest.approx(sum(value >= 0.5 for value in overlaps) / 41)
    assert 0.0 < row["corloc"] < 1.0


def test_missing_true_boxes_are_said_before_the_first_step(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    config = load_config(tiny_yaml, [f"out={tmp_path}", f"data={{train: {images / 'train'}, true_boxes: true}}"])
    with pytest.raises(SagaError, match=r"boxes\.json"):
        train(config)
    assert not (tmp_path / "last.pt").exists()
    with pytest.raises(SagaError, match=r"data\.true_boxes needs a folder, and train is an address: s3:"):
        load_config(tiny_yaml, ["data={train: 's3://b/x.tar', true_boxes: true}"])


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    sides = [max(min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]), 0.0) for i in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
