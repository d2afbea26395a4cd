"""The benchmarks run, at sizes that measure nothing, and write what DESIGN 8 says. No figure is judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import readme
from benchmarks.bench_input_size import RELATIVE
from benchmarks.images import make_images
from saga_fast.config_file import load_config
from saga_fast.train.cycle import train

ROOT = Path(__file__).parents[1]
TINY = ["--size", "32", "--images", "5", "--batch-size", "4", "--threads", "1", "--repeats", "2"]


def figures(script: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """The JSON that a benchmark writes."""
    out = folder / "new" / "F.json"
    command = [sys.executable, f"benchmarks/{script}", "--out", str(out), "--data", str(folder / "images")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([*command, *TINY, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    written: dict[str, Any] = json.loads(out.read_text())
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


def test_bench_folder(tmp_path: Path) -> None:
    written = figures("bench_folder.py", ["--width", "64", "--epochs", "6", "--rows", "1000"], tmp_path)
    check_schema(written)
    targets = {row["name"]: row["target"] for row in written["rows"] if "target" in row}
    assert sorted(targets.values()) == [0.75, 1.0, 1.0, 1.0, 1.0, 8.0]
    assert any(row["name"].startswith("noise") for row in written["rows"])


def test_bench_dali(tmp_path: Path) -> None:
    written = figures("bench_dali.py", ["--width", "64", "--epochs", "6", "--rows", "1000"], tmp_path)
    check_schema(written)
    targets = {row["name"]: row["target"] for row in written["rows"] if "target" in row}
    assert sorted(targets.values()) == [1.0, 1.0, 1.0, 1.0, 1.4]
    assert "nvidia-dali-cuda130" in written["versions"]


def test_bench_attention(tmp_path: Path) -> None:
    arguments = ["--encoder", "resnet18", "--layout", "channels_last", "--kernel-batch", "3", "--images", "8"]
    written = figures("bench_attention.py", arguments, tmp_path)
    check_schema(written)
    rows = written["rows"]
    assert sorted(row["target"] for row in rows if "target" in row) == [0.97, 0.97, 1.2, 4.5, 50.0]
    # Not a timing: the peers' boxes are ours when they upsample as we do.
    assert all(row[key] > 0.99 for row in rows for key in ("iou_bicubic",) if key in row)
    assert any(row["name"].startswith("noise") for row in rows)


def test_bench_renewal(tmp_path: Path) -> None:
    sizes = ["--images", "16", "--sizes", "70", "--names", "1100", "--encoder", "resnet18 32 8", "--methods", "insdis"]
    command = [sys.executable, "benchmarks/bench_renewal.py", "--out", str(tmp_path / "F.json"), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [*command, *sizes, "--seconds", "0.01"]
    ran = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads((tmp_path / "F.json").read_text())["rows"]
    names = [row["name"].split(",")[0].split(" of ")[0] for row in rows]
    assert names[:2] == ["renewal every 10 epochs", "predicted rebuild"]
    assert names[2:] == ["listing and fingerprint", "attention pass and listing", "table saved"]
    assert all(row["ratio"] > 0.0 and row["limit"] > 0.0 for row in rows)
    assert not (ROOT / "not-written").exists()


def test_bench_input_size(tmp_path: Path, finished_run: Path) -> None:
    config, environment = load_config(finished_run / "config.yaml"), os.environ | {"PYTHONPATH": str(ROOT)}
    own = f"{config.method.name}, {config.encoder.name} trained at {config.crop.size}"
    out, stale = tmp_path / "F.json", {"size": 1, "flops": 1}
    out.write_text(json.dumps({"rows": [{"network": own, **stale}]}))
    shared = ["--out", str(out), "--data", config.data.train, "--batch-size", "4", "--images", "5", "--repeats", "1"]
    trained, untrained = ["--ckpt", str(finished_run / "last.pt")], ["--untrained", "resnet18", "--sizes", "32", "24"]
    for network in (trained, untrained):
        command = [sys.executable, "benchmarks/bench_input_size.py", *network, *shared]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    rows = json.loads(out.read_text())["rows"]
    sizes: dict[str, list[int]] = {}
    for row in rows:
        sizes.setdefault(row["network"], []).extend([row["size"]] if "flops" in row else [])
    assert sizes == {own: [round(config.crop.size * times) for times in RELATIVE], "resnet18, untrained": [24, 32]}
    for row in rows:
        if "score" in row:
            assert row["images"] == 8
            assert 0.0 <= row["accuracy"] == row["ratio"] <= 1.0 and 0.0 <= row["iou_half"] <= 1.0
            assert row["accuracy"] == 1.0 or row["size"] < max(sizes[row["network"]])
    costs = [row["flops"] for row in rows if "flops" in row and row["network"] == own]
    assert costs == sorted(costs)


def test_bench_scaled_decode(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/bench_scaled_decode.py", "--out", str(tmp_path / "F.json"), "--repeats", "2"]
    command += ["--data", str(tmp_path), "--stored", "400x300 128 2", "40x30 16 2", "--encoder", "resnet18"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    written = json.loads((tmp_path / "F.json").read_text())
    check_schema({**written, "rows": [row for row in written["rows"] if "accuracy" not in row]})
    assert [row["decoded_side"] for row in written["rows"] if "400x300" in row["name"]] == [150, 300, 300, 150, 150]
    assert [row["decoded_side"] for row in written["rows"] if "40x30" in row["name"]] == [30, 30, 30]


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_pages_figures_are_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert readme.rewritten(text) == text, "run `python -m benchmarks.readme`"


def test_every_figure_is_on_a_page() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in readme.PAGES)
    assert sorted(part[2] for part in readme.PART.finditer(texts)) == sorted(readme.PARTS)


def test_bench_incremental_and_streaming(tiny_yaml: Path, tmp_path: Path) -> None:
    """A run that streamed: its own tables beside whole ones, and what other ways would have left; then the cost."""
    overrides = ["plain.epochs=1", "saga.epochs=3", "attention.period=1", "attention.renew=streaming"]
    train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *overrides, "checkpoint.keep_every=1"]))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    small = ["--steps", "1", "--rounds", "2", "--encoder", "resnet18 32 8", "--methods", "insdis", "--threads", "1"]
    rows = {}
    for script, arguments in (
        ("incremental", ["--run", str(tmp_path / "run"), "--fractions", "0.5"]),
        ("streaming", [*small, "--scores", "activation"]),
    ):
        command = [sys.executable, f"benchmarks/bench_{script}.py", "--out", str(tmp_path / "F.json"), *arguments]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        rows[script] = json.loads((tmp_path / "F.json").read_text())["rows"]
    ways = {row["name"]: row for row in rows["incremental"]}
    made, *others = ways
    assert made == "as trained, streaming"
    assert others == ["whole, at these epochs", "all", "changed", "once", "fraction 0.5", "random 0.5"]
    assert ways["as trained, streaming"]["epochs"] == ["epoch_0001", "epoch_0002", "epoch_0003"]
    assert ways["as trained, streaming"]["computed"] == 0.0
    assert ways["all"]["ratio"] == pytest.approx(1.0)
    assert all(0.1 < row["ratio"] < 1.0 for name, row in ways.items() if name in (made, "once", "random 0.5"))
    assert ways["fraction 0.5"]["computed"] == pytest.approx(0.5, abs=0.02)
    (cost,) = rows["streaming"]
    assert cost["ratio"] > 0.0
    assert cost["map"] == [2, 2]
    assert cost["bytes_per_image"] == 2 * 2 * 2 * 4 + 12


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
