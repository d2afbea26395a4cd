"""The training cycle end to end on tiny runs: what a run does and leaves behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from saga_fast import load_model
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.checkpoint import read_checkpoint
from saga_fast.config_file import load_config
from saga_fast.loaders import BoxTable, ImageFolder, WholePlan, open_loader
from saga_fast.runtime.files import sha256
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train.cycle import train


def test_run_folder(finished_run: Path, tiny_yaml: Path) -> None:
    files = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        "config.yaml",
        "metrics.jsonl",
        "last.pt",
        "att/epoch_0001.safetensors",
        "att/epoch_0003.safetensors",
    }
    config = load_config(tiny_yaml, [f"out={finished_run}"])
    assert load_config(finished_run / "config.yaml") == config
    state = read_checkpoint(finished_run / "last.pt")
    assert state["epoch"] == 5
    assert state["dataset"] == ImageFolder(config.data.train).fingerprint
    table = finished_run / "att/epoch_0003.safetensors"
    assert state["box_table"] == {"name": "att/epoch_0003.safetensors", "sha256": sha256(table)}


def test_metrics_rows(finished_run: Path) -> None:
    rows = read_metrics(finished_run)
    order = [(row["kind"], row["epoch"]) for row in rows if row.get("layer") != "projector"]
    assert order == [
        ("rankme", 0),
        ("knn", 0),
        ("epoch", 1),
        ("renewal", 1),
        ("epoch", 2),
        ("rankme", 2),
        ("online", 2),
        ("knn", 2),
        ("epoch", 3),
        ("renewal", 3),
        ("epoch", 4),
        ("rankme", 4),
        ("online", 4),
        ("knn", 4),
        ("epoch", 5),
        ("rankme", 5),
        ("online", 5),
        ("knn", 5),
    ]
    assert [row["phase"] for row in rows if row["kind"] == "epoch"] == ["plain"] + ["saga"] * 4
    for row in rows_of(finished_run, "epoch"):
        assert row["loss"] > 0.0
        assert row["images_per_second"] == pytest.approx(40 / row["seconds"])  # 41 images, 5 full batches of 8
        assert 0.0 <= row["data_wait"] <= 1.0
        assert -1.0 <= row["positive_similarity"] <= 1.0
    for row in rows_of(finished_run, "knn"):
        assert (row["k"], row["layer"] in ("backbone", "projector")) == (5, True)
        assert row["top1"] * 16 == pytest.approx(round(row["top1"] * 16))  # 16 images
    # Cosine over the 4 SAGA epochs of 5 steps, constant before; the rate of an epoch's last step is reported.
    rates = [row["lr"] for row in rows_of(finished_run, "epoch")]
    expected = [0.03] + [0.01 * (1 + np.cos(np.pi * (e + 0.8) / 4)) for e in range(4)]
    assert rates == pytest.approx(expected)


def test_renewal_rows_describe_the_tables(finished_run: Path) -> None:
    for row in rows_of(finished_run, "renewal"):
        assert row["table"] == f"att/epoch_{row['epoch']:04d}.safetensors"
        table = BoxTable.open(finished_run / row["table"])
        assert len(table) == 41
        assert row["found_fraction"] == pytest.approx(table.found.mean())
        assert row["box_area"] == pytest.approx(float((table.boxes[:, 2] * table.boxes[:, 3]).mean()), rel=1e-6)
        assert (row["iou"], row["corloc"]) == (None, None)
        assert row["images_per_second"] == pytest.approx(41 / row["seconds"])
        assert table.metadata["epoch"] == str(row["epoch"])
        assert (table.metadata["delta"], table.metadata["size"]) == ("0.7", "16")


def test_table_is_the_networks_own(tiny_yaml: Path, tmp_path: Path) -> None:
    """The table of a renewal holds the boxes of the checkpoint it names."""
    run = tmp_path / "run"
    train(
        load_config(tiny_yaml, [f"out={run}", "saga.epochs=1", "checkpoint.keep_every=1", "attention.score=activation"])
    )
    table = BoxTable.open(run / "att/epoch_0001.safetensors")
    model = load_model(run / "epoch_0001.pt").to(memory_format=torch.channels_last)
    config = load_config(run / "config.yaml")
    loader = open_loader("folder", config.data.train, WholePlan(size=16), batch_size=8)
    again = build_box_table(model, loader, AttentionPass(size=16, score="activation", channels_last=True))
    for column in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(table, column), getattr(again, column))
    assert table.metadata["dataset"] == loader.source.fingerprint
    assert table.metadata["checkpoint"] == sha256(run / "epoch_0001.pt")  # written with last.pt, from the same state


def test_tensorboard_has_the_figures(finished_run: Path) -> None:
    board = EventAccumulator(str(finished_run))
    board.Reload()
    wanted = {
        *(f"epoch/{name}" for name in ("loss", "lr", "images_per_second", "data_wait", "positive_similarity")),
        *(f"renewal/{name}" for name in ("box_area", "found_fraction")),
        "knn/backbone_5",
        "knn/projector_5",
        "epoch/online_top1",
        "online/top1",
        "rankme/backbone",
        "rankme/projector",
    }
    assert wanted <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("attention/boxes")] == [1, 3]  # a sheet at each renewal
    losses = {event.step: event.value for event in board.Scalars("epoch/loss")}
    assert losses == pytest.approx({row["epoch"]: row["loss"] for row in rows_of(finished_run, "epoch")}, rel=1e-6)


def test_keep_every(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    last = train(load_config(tiny_yaml, [f"out={run}", "checkpoint.keep_every=2", "evaluate=null"]))
    assert last == run / "last.pt"
    kept = sorted(path.name for path in run.glob("*.pt"))
    assert kept == ["epoch_0000.pt", "epoch_0002.pt", "epoch_0004.pt", "last.pt"]
    assert [read_checkpoint(run / name)["epoch"] for name in kept] == [0, 2, 4, 5]
    assert rows_of(run, "knn") == []
