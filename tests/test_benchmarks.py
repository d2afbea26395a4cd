"""The benchmarks run, at sizes that measure nothing, and write rows of the documented schema. No figure is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.bench_input_size import RELATIVE
from benchmarks.images import make_images
from benchmarks.pages.parts import PAGES, PART, PARTS, rewritten
from benchmarks.scaffold import record
from saga_fast.config_file import load_config
from saga_fast.profile.figures import Row
from saga_fast.train.cycle import train

ROOT = Path(__file__).parents[1]
TINY = ["--size", "32", "--images", "5", "--batch-size", "4", "--threads", "1", "--repeats", "2"]


def run(script: str, arguments: list[str], out: Path) -> dict[str, Any]:
    """The JSON that a benchmark writes."""
    command = [sys.executable, f"benchmarks/{script}.py", "--out", str(out), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    written: dict[str, Any] = json.loads(out.read_text())
    assert all(row["name"] in ran.stdout for row in written["rows"])
    return written


def check_schema(written: dict[str, Any]) -> None:
    assert list(written) == ["hardware", "versions", "commit", "command", "rows"]
    assert written["hardware"]["cores"] == 1
    assert {"python", "torch", "numba"} <= set(written["versions"])
    for row in written["rows"]:
        assert isinstance(row["name"], str) and isinstance(row["against"], str)
        (figure,) = {"images_per_second", "seconds", "bytes"} & set(row)
        for key in (figure, "limit", "ratio"):
            assert row[key] > 0.0, (row["name"], key)
        if figure != "bytes":
            assert min(row["p20"], row["p80"]) <= row[figure] <= max(row["p20"], row["p80"])


def loading_figures(script: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """The checked JSON of a benchmark with generated images."""
    written = run(script, ["--data", str(folder / "images"), *TINY, *arguments], folder / "new" / "F.json")
    check_schema(written)
    return written


def targets(written: dict[str, Any]) -> list[float]:
    return sorted(row["target"] for row in written["rows"] if "target" in row)


@pytest.mark.slow
def test_bench_folder(tmp_path: Path) -> None:
    written = loading_figures("bench_folder", ["--width", "64", "--epochs", "6", "--rows", "1000"], tmp_path)
    assert targets(written) == [0.75, 1.0, 1.0, 1.0, 1.0, 8.0]
    assert any(row["name"].startswith("noise") for row in written["rows"])


@pytest.mark.slow
def test_bench_dali(tmp_path: Path) -> None:
    written = loading_figures("bench_dali", ["--width", "64", "--epochs", "6", "--rows", "1000"], tmp_path)
    assert targets(written) == [1.0, 1.0, 1.0, 1.0, 1.4]
    assert "nvidia-dali-cuda130" in written["versions"]


@pytest.mark.slow
def test_bench_peers(tmp_path: Path) -> None:
    """The loaders that the tests' environment has; the others need packages of their own."""
    ways = ["folder, two views", "torch DataLoader, torchvision v2", "DALI, two image_random_crop"]
    written = loading_figures("bench_peers", ["--width", "64", "--ways", *ways], tmp_path)
    assert [row["name"] for row in written["rows"]] == ways
    assert targets(written) == [1.3]
    assert all(row["first_batch_seconds"] > 0 and row["memory_bytes"] > 2**20 for row in written["rows"])


@pytest.mark.slow
def test_bench_attention(tmp_path: Path) -> None:
    arguments = ["--encoder", "resnet18", "--layout", "channels_last", "--kernel-batch", "3", "--images", "8"]
    written = loading_figures("bench_attention", arguments, tmp_path)
    assert targets(written) == [0.97, 0.97, 1.2, 4.5, 50.0]
    rows = written["rows"]
    # Not a timing: the peer's boxes, upsampled as ours, are ours.
    assert all(row["iou_bicubic"] > 0.99 for row in rows if "iou_bicubic" in row)
    assert sum("iou_bicubic" in row for row in rows) == 1
    assert sum("breaks_even" in row for row in rows) == 1
    assert any(row["name"].startswith("noise") for row in rows)


@pytest.mark.slow
def test_bench_tokens(tmp_path: Path) -> None:
    rows = loading_figures("bench_tokens", ["--encoder", "test_vit", "--images", "4"], tmp_path)["rows"]
    assert targets({"rows": rows}) == [0.9] * 8
    counted = {row["name"].split(",")[1].strip(): row for row in rows if "flops" in row}
    assert list(counted) == ["pseudo_label", "activation", "background", "token"]
    assert all(row["flops"] < 1.01 * row["flops_forward"] for row in counted.values())
    assert sum(row["name"].startswith("noise") for row in rows) == 2


@pytest.mark.slow
def test_bench_renewal(tmp_path: Path) -> None:
    sizes = ["--images", "16", "--sizes", "70", "--names", "1100", "--encoder", "resnet18 32 8", "--methods", "insdis"]
    rows = run("bench_renewal", ["--threads", "1", *sizes, "--seconds", "0.01"], tmp_path / "F.json")["rows"]
    names = [row["name"].split(",")[0].split(" of ")[0] for row in rows]
    assert names[:2] == ["renewal every 10 epochs", "predicted rebuild"]
    assert names[2:] == ["listing and fingerprint", "attention pass and listing", "table saved"]
    assert all(row["ratio"] > 0.0 and row["limit"] > 0.0 for row in rows)
    assert not (ROOT / "not-written").exists()


@pytest.mark.slow
def test_bench_input_size(tmp_path: Path, finished_run: Path) -> None:
    config = load_config(finished_run / "config.yaml")
    network = f"{config.method.name}, {config.encoder.name} trained at {config.crop.size}"
    out = tmp_path / "F.json"
    out.write_text(json.dumps({"rows": [{"name": "old", "network": network, "size": 1, "flops": 1}]}))
    shared = ["--data", config.data.train, "--batch-size", "4", "--images", "5", "--repeats", "1"]
    run("bench_input_size", ["--ckpt", str(finished_run / "last.pt"), *shared], out)
    assert all(row["network"] == network and row["name"] != "old" for row in json.loads(out.read_text())["rows"])
    command = [sys.executable, "benchmarks/bench_input_size.py", "--out", str(out), "--untrained", "resnet18", *shared]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--sizes", "32", "24"], cwd=ROOT, env=environment, capture_output=True, check=True)
    rows = json.loads(out.read_text())["rows"]
    sizes: dict[str, list[int]] = {}
    for row in rows:
        sizes.setdefault(row["network"], []).extend([row["size"]] if "flops" in row else [])
    expected = [round(config.crop.size * times) for times in RELATIVE]
    assert sizes == {network: expected, "resnet18, untrained": [24, 32]}
    for row in rows:
        if "score" in row:
            assert row["images"] == 8
            assert 0.0 <= row["accuracy"] == row["ratio"] <= 1.0 and 0.0 <= row["iou_half"] <= 1.0
            assert row["accuracy"] == 1.0 or row["size"] < max(sizes[row["network"]])
    costs = [row["flops"] for row in rows if "flops" in row and row["network"] == network]
    assert costs == sorted(costs)


@pytest.mark.slow
def test_bench_scaled_decode(tmp_path: Path) -> None:
    stored = ["--stored", "400x300 128 2", "40x30 16 2", "--encoder", "resnet18"]
    written = run("bench_scaled_decode", ["--repeats", "2", "--data", str(tmp_path), *stored], tmp_path / "F.json")
    check_schema({**written, "rows": [row for row in written["rows"] if "accuracy" not in row]})
    assert [row["decoded_side"] for row in written["rows"] if "400x300" in row["name"]] == [150, 300, 300, 150, 150]
    assert [row["decoded_side"] for row in written["rows"] if "40x30" in row["name"]] == [30, 30, 30]


@pytest.mark.slow
def test_bench_incremental(tiny_yaml: Path, tmp_path: Path) -> None:
    overrides = ["plain.epochs=1", "saga.epochs=3", "attention.period=1", "checkpoint.keep_every=1"]
    train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *overrides]))
    arguments = ["--run", str(tmp_path / "run"), "--shares", "0.5"]
    rows = run("bench_incremental", arguments, tmp_path / "F.json")["rows"]
    ways = {row["name"]: row for row in rows}
    assert list(ways) == ["all", "changed", "once", "random 0.5"]
    assert ways["all"]["ratio"] == pytest.approx(1.0)
    assert ways["once"]["computed"] == 0.0
    assert ways["random 0.5"]["computed"] == pytest.approx(0.5, abs=0.02)
    assert all(0.1 < ways[name]["ratio"] <= 1.0 for name in ways)


@pytest.mark.slow
def test_bench_online(tmp_path: Path) -> None:
    sizes = ["--cases", "demo", "demo_cmc", "--batch-size", "4", "--features", "40", "8", "--features", "8", "9"]
    written = run("bench_online", ["--threads", "1", "--repeats", "2", *sizes], tmp_path / "F.json")
    check_schema(written)
    assert targets(written) == [0.98, 0.98]
    assert [row["name"].split(",")[0] for row in written["rows"]] == [
        *(["step with the probe", "the probe alone"] * 2),
        *(["RankMe"] * 2),
    ]
    assert all(row["noise"] >= 0.0 for row in written["rows"] if "target" in row)
    assert all(0.0 < row["share"] < 1.0 for row in written["rows"] if row["name"].startswith("the probe"))


@pytest.mark.slow
def test_demo_methods(tmp_path: Path) -> None:
    small = ["data.generate.num_train=24", "data.generate.num_val=24", "crop.size=32", "batch_size=8"]
    overrides = [*small, "plain.epochs=1", "plain.warmup_epochs=0", "saga.epochs=1", "evaluate.k=[20]"]
    arguments = ["--runs", str(tmp_path / "runs"), "--methods", "simclr", "--set", *overrides]
    (row,) = run("demo_methods", arguments, tmp_path / "F.json")["rows"]
    assert row["name"] == "simclr, kNN (k 20) after 2 epochs"
    assert len(row["box_iou"]) == 1
    arguments[3] = "dino"
    arms = run("demo_methods", [*arguments, "--arms", "finetune", "saga_plus", "--seeds", "1"], tmp_path / "A.json")
    plain, finetune, plus = arms["rows"]
    names = [f"dino, seed 1, {arm}" for arm in ("plain", "finetune", "saga_plus")]
    assert [row["name"] for row in arms["rows"]] == names
    assert (plain["against"], plus["limit"]) == ("chance", finetune["accuracy"])
    assert (list(plain["knn"]), list(plus["knn"])) == (["0", "1"], ["1", "2"])
    assert [len(row["corloc"]) for row in arms["rows"]] == [0, 0, 1]


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    out = tmp_path / "F.json"
    row: Row = {"name": "second", "seconds": 1.0, "limit": 1.0, "against": "itself", "ratio": 1.0}

    def rows() -> Any:
        yield row
        assert [each["name"] for each in json.loads(out.read_text())["rows"]] == ["first", "second"]
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        record(out, rows(), kept=[row | {"name": "first"}])
    assert len(json.loads(out.read_text())["rows"]) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_of_pages_are_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rewritten(text) == text, "run `python -m benchmarks.pages`"


def test_each_figure_is_on_one_page() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(part[2] for part in PART.finditer(texts)) == sorted(PARTS)


@pytest.mark.slow
def test_images_are_deterministic_and_of_imagenets_size(tmp_path: Path) -> None:
    few, more = make_images(tmp_path / "a", 3), make_images(tmp_path / "b", 4)
    files = sorted(few.rglob("*.jpg"))
    assert len(files) == 3
    for file in files:
        assert file.read_bytes() == (more / file.relative_to(few)).read_bytes()
        assert 100_000 < file.stat().st_size < 116_000
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("RGB", (500, 375))
    stamped = (few / "images.json").stat().st_mtime_ns
    assert make_images(tmp_path / "a", 3) == few
    assert (few / "images.json").stat().st_mtime_ns == stamped  # made once
    (few / "images.json").write_text("{}")
    with pytest.raises(ValueError, match="another recipe"):
        make_images(tmp_path / "a", 3)
