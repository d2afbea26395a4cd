"""``saga-fast profile`` at tiny sizes: rows, schema, recommendation, bottleneck and prediction."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saga_fast.checkpoint import load_model
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.loaders import WholePlan, open_loader
from saga_fast.profile.att import AttProfile, profile_att
from saga_fast.profile.figures import Row
from saga_fast.profile.loaders import describe_bottleneck, recommend
from saga_fast.profile.rebuild import Cluster, predict


def profiled(arguments: list[str], out: Path) -> tuple[dict[str, Row], dict[str, Any]]:
    """Rows by name, and the whole document."""
    assert main(["profile", *arguments, "--json", str(out)]) == 0
    document: dict[str, Any] = json.loads(out.read_text())
    assert set(document) == {"hardware", "versions", "commit", "command", "rows"}
    for row in document["rows"]:
        (figure,) = {"images_per_second", "seconds", "bytes"} & set(row)
        assert min(row[figure], row["limit"], row["ratio"]) > 0.0, row
    return {row["name"]: row for row in document["rows"]}, document


def test_loaders(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(images / "train"), "--size", "16", "--batch-size", "4", "8", "--threads", "1", "2"]
    rows, _ = profiled(["loaders", *arguments, "--engine", "folder", "--seconds", "0.02"], tmp_path / "new/l.json")
    assert len(rows) == 6
    for threads in (1, 2):
        assert f"read and decode alone, {threads} threads" in rows
        for batch_size in (4, 8):
            row = rows[f"folder, 2 views, {threads} threads, batches of {batch_size}"]
            assert {"batch_p50", "batch_p95", "cpu", "resident_bytes", "engine"} <= set(row)
            assert row["against"] == "read and decode alone"
    *_, cause, choice = capsys.readouterr().out.strip().splitlines()
    assert "is the bottleneck" in cause
    assert choice.startswith("choose: --set data.engine=folder data.threads=")
    assert choice.split("--set ")[1].split()[-1] in ("batch_size=4", "batch_size=8")


def test_att(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ckpt", str(finished_run / "last.pt"), "--seconds", "0.05", "--batch-size", "8"]
    rows, _ = profiled(["att", *arguments, "--images", "100000", "--gpus", "2"], tmp_path / "a.json")
    assert set(rows) == {"decode", "forward", "attention_pass", "network", "start", "write", "predicted rebuild"}
    assert rows["attention_pass"]["against"] == "forward"
    assert rows["predicted rebuild"]["images"] == 100000
    assert "rebuild of 100000 images with 2 GPUs on 1 machine: " in capsys.readouterr().out


def test_att_compiled(finished_run: Path) -> None:
    """The pass and its limit run the same forward pass, and the time to compile is a separate row."""
    config = load_config(finished_run / "config.yaml", ["attention.forward=compiled"])
    loader = open_loader("folder", config.data.train, WholePlan(size=16), batch_size=8)
    model = load_model(finished_run / "last.pt")
    profile = AttProfile(model=model, loader=loader, attention_pass=config.attention_pass, images=41, seconds=0.05)
    rows = {row["name"]: row for row in profile_att(profile)}
    assert set(rows) > {"eager_forward", "forward", "attention_pass", "compile", "start", "write"}
    assert rows["compile"]["seconds"] > 0.1
    assert rows["eager_forward"]["against"] == "forward"
    assert model.encoder.compiled is None


def test_train(tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = profiled(["train", "--config", str(tiny_yaml), "--seconds", "0.05"], tmp_path / "t.json")
    assert set(rows) == {"loader", "step", "train"}
    assert rows["train"]["against"] in ("loader", "step")
    assert f"the {rows['train']['against']} is the bottleneck" in capsys.readouterr().out
    assert not (Path.cwd() / "not-set").exists()


def test_kernels(tmp_path: Path) -> None:
    rows, _ = profiled(["kernels", "--batch-size", "2", "--size", "16", "--repeats", "2"], tmp_path / "k.json")
    assert set(rows) == {
        "attention_boxes",
        "sample_windows",
        "sample_photometrics",
        "crop_resize",
        "augment",
        "bank_logits",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loaders", "--data", "IMAGES", "--seconds", "0"], "--seconds must be positive, got 0.0"),
        (["loaders", "--data", "IMAGES", "--threads", "2", "-1"], "--threads must be positive, got -1"),
        (["loaders", "--data", "IMAGES", "--engine", "ffcv"], "none of the engines ffcv reads"),
        (["loaders", "--data", "no such folder"], "no such image folder: no such folder"),
        (["loaders", "--data", "IMAGES", "--batch-size", "99"], "no engine could read the images, see above"),
        (["loaders", "--data", "IMAGES", "--json", "IMAGES/train/cat/000.jpg/x.json"], "000.jpg"),
        (["att", "--ckpt", "none.pt"], "no such checkpoint: none.pt"),
        (["kernels", "--repeats", "0"], "--repeats must be positive, got 0"),
    ],
)
def test_refused_arguments(
    arguments: list[str],
    message: str,
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [word.replace("IMAGES", str(images / "train")).replace("/train/train", "/train") for word in arguments]
    extra = [] if "--seconds" in arguments or arguments[0] == "kernels" else ["--seconds", "0.01"]
    assert main(["profile", *arguments, *extra]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]


def loader_row(engine: str, threads: int, batch_size: int, rate: float, **facts: Any) -> Row:
    row = {"name": f"{engine} {threads} {batch_size}", "engine": engine, "threads": threads, "prefetch": 2}
    return row | {"batch_size": batch_size, "images_per_second": rate, "ratio": 0.5, "cpu": float(threads)} | facts


def test_recommendation() -> None:
    """The fastest combination; of those within 3 % of it, the one with the fewest threads and smallest batches."""
    rows = [
        {"name": "read and decode alone, 4 threads", "images_per_second": 900.0, "limit": 900.0, "ratio": 1.0},
        loader_row("folder", 4, 64, 700.0),
        loader_row("dali", 4, 256, 810.0),
        loader_row("dali", 2, 256, 800.0),
        {"name": "ffcv", "engine": "ffcv", "error": "engine ffcv needs ffcv"},
    ]
    assert recommend(rows) == "data.engine=dali data.threads=2 data.prefetch=2 batch_size=256"
    assert recommend(rows[-1:]) is None


@pytest.mark.parametrize(
    ("facts", "cause"),
    [({"ratio": 0.8}, "decoding"), ({"cpu": 1.0}, "reading or waiting"), ({}, "cropping")],
)
def test_bottleneck(facts: dict[str, float], cause: str) -> None:
    rows = [loader_row("folder", 4, 64, 700.0, **facts)]
    assert describe_bottleneck(rows).startswith(f"{cause} is the bottleneck")
    copy = {"name": "copy of the views to the GPU", "images_per_second": 710.0}
    assert describe_bottleneck([copy, *rows]).startswith("the copy to the GPU is the bottleneck")


def test_prediction() -> None:
    """On GPUs the loader is shared and the network is not; on CPUs each machine runs the whole pass."""
    rows: list[Row] = [
        {"name": name, "images_per_second": rate}
        for name, rate in (("decode", 6000.0), ("forward", 2000.0), ("attention_pass", 1900.0), ("network", 2000.0))
    ]
    rows += [{"name": "upload", "images_per_second": 40000.0}, {"name": "write", "seconds": 0.5, "images": 1000}]
    one = predict(rows, images=10_000, cluster=Cluster(on_gpu=True))
    assert (one.bottleneck, one.images_per_second) == ("network", 1900.0)
    assert one.seconds == pytest.approx(10_000 / 1900 + 5.0)
    eight = predict(rows, images=10_000, cluster=Cluster(gpus=8, on_gpu=True))
    assert (eight.bottleneck, eight.images_per_second) == ("decode", 6000.0)
    many = predict(rows, images=10_000, cluster=Cluster(nodes=4, on_gpu=True, gbit_per_second=1e-3))
    assert many.images_per_second == 4 * 1900.0
    assert many.seconds == pytest.approx(10_000 / 7600 + 5.0 + 10_000 * 33 * 8 / 1e6)
    more = predict(
        [*rows, {"name": "compile", "seconds": 9.0}, {"name": "start", "seconds": 0.25}],
        images=10_000,
        cluster=Cluster(on_gpu=True),
    )
    assert more.seconds == pytest.approx(one.seconds + 9.25)
    cpu = predict(rows, images=10_000, cluster=Cluster(on_gpu=False))
    assert cpu.images_per_second == 1900.0 and "CPU" in cpu.bottleneck


def test_package_needs_no_configuration_library() -> None:
    """benchmarks/gpu.py imports profile.figures on machines without pydantic."""
    script = "import sys, saga_fast.profile.figures; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": "."})
