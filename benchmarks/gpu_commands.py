"""The commands on the device: train, killed and resumed training, build-att and eval, on generated images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from benchmarks.gpu_timing import Bench
from benchmarks.images import cloud_jpegs
from saga_fast.profile.figures import Row

ROOT = Path(__file__).parents[1]
TINY = (
    *("data.generate=null", "data.true_boxes=false", "crop.size=32", "batch_size=16", "plain.warmup_epochs=0"),
    *("saga.epochs=1", "attention.period=1", "evaluate.k=[5]", "checkpoint.keep_every=null", "data.threads=2"),
)
NEAR = 5e-2
"""Relative difference of losses after a resumed run on a GPU, whose sums have no fixed order; 0 on the CPU."""
PATIENCE = 60.0


def check_commands(bench: Bench) -> Iterator[Row]:
    """Each command ends with 0; a run that was killed and resumed has the losses of one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root / "data", images=48 if bench.small else 256)
        checkpoint = ["--ckpt", str(root / "whole" / "last.pt"), "--device", bench.device.type]
        data = ["--data", str(root / "data" / "train")]
        killed = start(training_words(bench, root, "killed"), root)
        whole = start(training_words(bench, root, "whole"), root)
        yield kill_in_training(killed, root / "killed")
        yield from rows_of_commands({"train": whole})
        then = {
            "train --resume": [*training_words(bench, root, "killed"), "--resume"],
            "build-att": ["build-att", *checkpoint, *data, "--out", str(root / "boxes.safetensors")],
            "eval knn": ["eval", "knn", *checkpoint, *data, "--k", "5"],
        }
        yield from rows_of_commands({name: start(words, root) for name, words in then.items()})
        yield compare_losses(bench, root)


def generate(data: Path, *, images: int) -> None:
    """Folders train and val of JPEGs in two classes."""
    for number, jpeg in enumerate(cloud_jpegs(images + 16, width=64, height=48)):
        split = "train" if number < images else "val"
        path = data / split / f"class_{number % 2}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)


def training_words(bench: Bench, root: Path, run: str) -> list[str]:
    """``train`` with the demo's config at a tiny size, into ``root/run``."""
    config = str(files("saga_fast.configs") / "demo.yaml")
    places = [f"data.{split}={root / 'data' / split}" for split in ("train", "val")]
    epochs = f"plain.epochs={3 if bench.small else 12}"
    overrides = [*TINY, epochs, *places, f"device={bench.device.type}"]
    return ["train", "--config", config, "--out", str(root / run), "--set", *overrides]


def start(words: list[str], root: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "saga_fast", *words]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)


def rows_of_commands(started: dict[str, subprocess.Popen[bytes]]) -> Iterator[Row]:
    """A row of each command, which run at the same time: the seconds until it and those before it have ended."""
    begin = time.perf_counter()
    for name, process in started.items():
        code = process.wait(PATIENCE)
        row: Row = {"name": f"command {name}", "seconds": time.perf_counter() - begin, "limit": PATIENCE}
        row |= {"against": "the patience", "ratio": PATIENCE / row["seconds"]}
        yield row if code == 0 else {"name": row["name"], "error": f"exit code {code}"}


def kill_in_training(process: subprocess.Popen[bytes], run: Path) -> Row:
    """Send SIGKILL once an epoch's losses are written."""
    begin = time.monotonic()
    while process.poll() is None and not losses(run) and time.monotonic() - begin < PATIENCE:
        time.sleep(0.005)
    process.kill()
    code, epochs = process.wait(), len(losses(run))
    row: Row = {"name": "command train, killed", "seconds": time.monotonic() - begin, "limit": PATIENCE}
    row |= {"against": "the patience", "ratio": PATIENCE / (time.monotonic() - begin), "epochs": epochs}
    if code != -signal.SIGKILL or not epochs:
        return {"name": row["name"], "error": f"exit code {code} after {epochs} epochs, not killed in training"}
    return row


def losses(run: Path) -> list[float]:
    """The losses of the epochs in a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row["loss"] for row in rows if row["kind"] == "epoch"]


def compare_losses(bench: Bench, root: Path) -> Row:
    """The losses of the run that was killed and resumed against those of the uninterrupted one."""
    whole, resumed = losses(root / "whole"), losses(root / "killed")
    name, limit = "losses of the resumed run", NEAR if bench.cuda else 1e-12
    if len(whole) != len(resumed) or not whole:
        return {"name": name, "error": f"{len(resumed)} epochs, the uninterrupted run has {len(whole)}"}
    apart = max(abs(a - b) / abs(b) for a, b in zip(resumed, whole, strict=True))
    row: Row = {"name": name, "deviation": apart, "limit": limit, "against": "allowed relative difference"}
    row |= {"ratio": limit / max(apart, 1e-3 * limit), "epochs": len(whole), "equal": whole == resumed}
    return row if apart <= limit else row | {"error": f"differ by {apart:.3g}"}
