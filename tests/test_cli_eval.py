"""The commands ``eval`` and ``report``: their output, their files, and the arguments that they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_fast.cli import main

Refuses = Callable[..., None]


# ---------------------------------------------------------------- eval knn


def test_eval_knn(ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "knn.json"
    arguments = ["eval", "knn", "--ckpt", str(ckpt), "--data", str(images), "--k", "5", "20"]
    assert main([*arguments, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["checkpoint"] == str(ckpt)
    rows = {(row["layer"], row["k"]): row["top1"] for row in content["rows"]}
    assert list(rows) == [("backbone", 5), ("backbone", 20), ("projector", 5), ("projector", 20)]
    assert out.splitlines() == [f"kNN {layer:9s} k {k:3d}: {100 * top1:.1f} %" for (layer, k), top1 in rows.items()]

    # The run evaluated the same network on the same images at its end.
    metrics = [json.loads(line) for line in (ckpt.parent / "metrics.jsonl").read_text().splitlines()]
    last = {row["layer"]: row["top1"] for row in metrics if row["kind"] == "knn" and row["epoch"] == 5}
    assert {layer: rows[layer, 5] for layer in last} == last

    # A SRC that contains train/ and val/ stands for both.
    assert main([*arguments[:4], "--data", str(images / "train"), "--val", str(images / "val"), "--k", "5", "20"]) == 0
    assert capsys.readouterr().out == out


def test_eval_knn_leaves_one_out(ckpt: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knn", "--ckpt", str(ckpt), "--data", str(images / "train"), "--k", "1", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    # If an image were among its neighbours, this would be 100 %.
    assert "kNN backbone  k   1: 100.0 %" not in lines


def test_eval_knn_refuses(ckpt: Path, images: Path, tmp_path: Path, refuses: Refuses) -> None:
    train_images, val = images / "train", images / "val"
    arguments = ["eval", "knn", "--ckpt", ckpt, "--data", train_images]
    refuses([*arguments, "--k", "41"], "k = 41", "40")
    refuses([*arguments, "--val", val, "--k", "5", "42"], "k = 42", "41")
    refuses([*arguments, "--k", "0"], "--k", "[0]")
    refuses([*arguments, "--k", "5", "--temperature", "0"], "--temperature", "0.0")
    refuses([*arguments, "--k", "5", "--engine", "dalli"], "no such engine", "'dalli'")
    refuses([*arguments, "--val", tmp_path / "none"], "no such image folder", tmp_path / "none")
    refuses(["eval", "knn", "--ckpt", ckpt, "--data", train_images / "cat", "--k", "3"], "labelled images")


def test_eval_knn_refuses_unknown_classes(ckpt: Path, images: Path, tmp_path: Path, refuses: Refuses) -> None:
    shutil.copytree(images / "val" / "cat", tmp_path / "val" / "lynx")
    arguments = ["eval", "knn", "--ckpt", ckpt, "--data", images / "train", "--k", "3"]
    refuses([*arguments, "--val", tmp_path / "val"], "'lynx'", images / "train")


def test_eval_knn_refuses_output_that_cannot_be_written(
    ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    arguments = ["eval", "knn", "--ckpt", str(ckpt), "--data", str(images / "val"), "--k", "3"]
    assert main([*arguments, "--json", str(file / "knn.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert file.read_text() == "mine"


def test_eval_knn_sweeps(ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "knn.json"
    arguments = ["eval", "knn", "--ckpt", str(ckpt), "--data", str(images), "--json", str(file)]
    assert main([*arguments, "--k", "1", "7", "--temperature", "0.07", "0.5", "--layer", "projector"]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["layer"], row["temperature"], row["k"]) for row in rows] == [
        ("projector", temperature, k) for temperature in (0.07, 0.5) for k in (1, 7)
    ]
    assert capsys.readouterr().out.splitlines()[0].startswith("kNN projector k   1 temperature 0.07: ")


def test_eval_knn_refuses_before_the_passes(ckpt: Path, images: Path, refuses: Refuses) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saga_fast.cli.evaluate.extract_features", lambda *_, **__: pytest.fail("a pass was made"))
        refuses(["eval", "knn", "--ckpt", ckpt, "--data", images, "--k", "42"], "k = 42", "41")


@pytest.mark.parametrize("views", ["att", "both"])
def test_eval_knn_views(
    ckpt: Path, images: Path, tmp_path: Path, views: str, refuses: Refuses, capsys: pytest.CaptureFixture[str]
) -> None:
    """Boxes from a file are equal to those computed by the command."""
    tables = [tmp_path / f"{split}.safetensors" for split in ("train", "val")]
    for split, table in zip(("train", "val"), tables, strict=True):
        assert main(["build-att", "--ckpt", str(ckpt), "--data", str(images / split), "--out", str(table)]) == 0
    capsys.readouterr()
    arguments = ["eval", "knn", "--ckpt", str(ckpt), "--data", str(images), "--k", "5", "--views", views]
    assert main(arguments) == 0
    made = capsys.readouterr().out
    assert main([*arguments, "--table", str(tables[0]), "--val-table", str(tables[1])]) == 0
    assert capsys.readouterr().out == made
    refuses([*arguments, "--table", tables[1]], "was made for data set")


def test_eval_pairs(ckpt: Path, images: Path, tmp_path: Path, refuses: Refuses) -> None:
    file, picture = tmp_path / "pairs.json", tmp_path / "pairs.png"
    arguments = ["eval", "pairs", "--ckpt", str(ckpt), str(ckpt), "--data", str(images / "train"), "--images", "30"]
    assert main([*arguments, "--json", str(file), "--png", str(picture)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["views"] for row in rows] == ["plain", "attention"] * 2
    assert rows[:2] == rows[2:]  # the same checkpoint twice
    for row in rows:
        assert sum(row["counts"]) == row["images"] == 30
        centres = [(a + b) / 2 for a, b in zip(row["edges"], row["edges"][1:], strict=False)]
        mean = sum(count * centre for count, centre in zip(row["counts"], centres, strict=True)) / 30
        assert mean == pytest.approx(row["mean"], abs=0.0125)  # half a bin
    assert rows[0]["mean"] != rows[1]["mean"]
    assert picture.stat().st_size > 1000
    refuses([*arguments, "--table", "one.safetensors"], "one file per checkpoint", "1 for 2")
    refuses([*arguments, "--images", "0"], "--images must be positive")


def test_report_command(ckpt: Path, tmp_path: Path, refuses: Refuses, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(ckpt.parent), "--out", str(out), "--title", "Mine"]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    assert "<title>Mine</title>" in out.read_text()
    refuses(["report", tmp_path / "none"], "contains no metrics.jsonl")
