"""What is saved before what may fail: evaluations, narrow boxes, too few images, short memory, changing files."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import assert_same_run, rows_of

from saga_fast.checkpoint import open_checkpoint, read_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import extract_features
from saga_fast.loaders import BoxTable, ImageFolder, WholePlan, open_loader
from saga_fast.report.histograms import draw_png
from saga_fast.train import cycle
from saga_fast.train.cycle import train

EVALUATIONS = {"saga.epochs": 2, "evaluate.every": 1}


@pytest.fixture(scope="module")
def reference(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, each with an evaluation, that nothing interrupted."""
    run = tmp_path_factory.mktemp("order") / "reference"
    train(load_config(tiny_yaml, [f"out={run}", *(f"{key}={value}" for key, value in EVALUATIONS.items())]))
    return run


@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_sigterm_in_an_evaluation(
    tiny_yaml: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The epoch before it is in last.pt, the process ends at once, and the resumed run repeats the evaluation."""
    run, real, calls = tmp_path / "run", extract_features, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    config = load_config(tiny_yaml, [f"out={run}", *(f"{key}={value}" for key, value in EVALUATIONS.items())])
    with monkeypatch.context() as patch:
        patch.setattr(cycle, "extract_features", interrupted)
        with pytest.raises(SystemExit) as caught:
            train(config)
    assert caught.value.code == 143
    assert calls == call
    assert read_checkpoint(run / "last.pt")["epoch"] == (call - 1) // 2
    train(config, resume=True)
    assert_same_run(run, reference)


def test_a_failing_evaluation_keeps_the_epoch(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    val, run = tmp_path / "val", tmp_path / "run"
    shutil.copytree(images / "val", val)
    overrides = [f"out={run}", f"data.val={val}", "attention=null", "saga.epochs=2", "evaluate.every=3"]
    config = load_config(tiny_yaml, overrides)
    train(replace(config, evaluate=None))
    shutil.rmtree(run)
    for path in val.rglob("*.jpg"):
        path.write_bytes(b"cut")
    with pytest.raises(SagaError, match="cannot be decoded"):
        train(config)
    assert read_checkpoint(run / "last.pt")["epoch"] == 0
    shutil.rmtree(val)
    shutil.copytree(images / "val", val)
    train(config, resume=True)
    assert [row["epoch"] for row in rows_of(run, "knn") if row["layer"] == "backbone"] == [0, 3]


def test_a_finished_run_is_not_evaluated_again(
    tiny_yaml: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle, "extract_features", lambda *_, **__: pytest.fail("evaluated again"))
    overrides = [f"out={reference}", *(f"{key}={value}" for key, value in EVALUATIONS.items())]
    train(load_config(tiny_yaml, overrides), resume=True)


@pytest.mark.parametrize("side", [0.03, 0.01, 1e-4])
def test_narrow_boxes_are_drawn_and_trained_on(tiny_yaml: Path, images: Path, tmp_path: Path, side: float) -> None:
    source = ImageFolder(images / "train")
    whole = BoxTable.whole(len(source))
    boxes = whole.boxes.copy()
    boxes[5], boxes[6] = [0.5, 0.5, side, side], [1.0 - side, 0.0, side, 1.0]
    table = tmp_path / "t.safetensors"
    replace(whole, boxes=boxes, metadata={"dataset": source.fingerprint}).save(table)
    data = ["--data", str(images / "train")]
    for name in ("s.png", "s.html"):
        assert main(["show-att", str(table), *data, "--out", str(tmp_path / name)]) == 0
    overrides = [f"out={tmp_path / 'run'}", "attention.provider=table", f"attention.provider_table={table}"]
    config = load_config(tiny_yaml, [*overrides, "saga.epochs=2"])
    train(config)
    train(config, resume=True)


def some_images(folder: Path, good: int, bad: int) -> Path:
    (folder / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(good + bad):
        path = folder / "a" / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
        if number >= good:
            path.write_bytes(b"cut")
    return folder


@pytest.mark.parametrize(("good", "bad"), [(7, 3), (7, 1), (0, 8)])
def test_fewer_good_images_than_a_batch(
    tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], good: int, bad: int
) -> None:
    """One line with the mend, also for every --resume."""
    data = some_images(tmp_path / "data", good, bad)
    command = ["train", "--config", str(tiny_yaml), "--out", str(tmp_path / "run"), "--set", f"data.train={data}"]
    command += ["data.val=null", "data.max_bad_fraction=1", "attention=null"]
    for more in ([], ["--resume"]):
        capsys.readouterr()
        assert main([*command[:5], *more, *command[5:]]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("saga-fast: error: ")
        assert "lower batch_size" in error or "mend the files" in error or "none of the" in error


def test_evaluation_of_no_image(ckpt: Path, tmp_path: Path, refuses: Callable[..., None]) -> None:
    data = some_images(tmp_path / "data", 0, 6)
    arguments = ["eval", "knn", "--ckpt", ckpt, "--data", data, "--k", "1"]
    refuses(arguments, "cannot be decoded")


@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_short_memory_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    data = some_images(tmp_path / "data", 9, 0)  # PNG files: the threads decode them in every engine
    loader = open_loader(engine, data, WholePlan(size=8), batch_size=4)

    def short(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("saga_fast.loaders.decode.Image.open", short)
    with pytest.raises(MemoryError):
        list(loader)
    assert len(loader.bad) == 0
    monkeypatch.undo()
    assert sum(len(batch.index) for batch in loader) == 9


def test_no_descriptor_is_no_bad_image(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = open_loader("folder", images / "train", WholePlan(size=8), batch_size=4)

    def exhausted(*_: Any) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ImageFolder, "read", exhausted)
    monkeypatch.delattr(ImageFolder, "file_range")
    with pytest.raises(OSError, match="Too many open files"):
        list(loader)
    assert len(loader.bad) == 0


def test_equal_tables_are_equal_files(tmp_path: Path) -> None:
    """In any process: the order of safetensors' metadata is random per process."""
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from saga_fast.loaders import BoxTable\n"
        "words = {name: name for name in ('dataset', 'checkpoint', 'epoch', 'delta', 'size', 'normalize', 'mirror')}\n"
        "replace(BoxTable.whole(7), metadata=words).save(Path(sys.argv[1]))"
    )
    digests = set()
    for number in range(4):
        path = tmp_path / f"{number}"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        assert BoxTable.open(path).metadata["epoch"] == "epoch"
    assert len(digests) == 1


def test_a_checkpoint_is_read_once(ckpt: Path, tmp_path: Path) -> None:
    """Weights, config, epoch and hash are of one file, also if another one takes its place meanwhile."""
    path = tmp_path / "live.pt"
    shutil.copy(ckpt, path)
    checkpoint = open_checkpoint(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    content = torch.load(ckpt, weights_only=True)
    torch.save({**content, "epoch": 3, "model": {k: v * 2 for k, v in content["model"].items()}}, path)
    assert (checkpoint.sha256, checkpoint.epoch) == (digest, 5)
    for name, tensor in checkpoint.model().state_dict().items():
        assert torch.equal(tensor, content["model"][name])


@pytest.mark.parametrize("command", ["build-att", "eval knn"])
def test_commands_read_a_checkpoint_once(
    ckpt: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from saga_fast import checkpoint

    reads, real = [], checkpoint._read

    def counting(path: Path) -> bytes:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(checkpoint, "_read", counting)
    more = ["--out", str(tmp_path / "t")] if command == "build-att" else ["--data", str(images), "--k", "5"]
    assert main([*command.split(), "--ckpt", str(ckpt), *more]) == 0
    assert reads == [ckpt]


def test_names_with_dollars(tmp_path: Path) -> None:
    row = {"name": "a$b$c$", "epoch": 1, "views": "plain", "edges": [-1.0, 0.0, 1.0], "counts": [1, 2], "mean": 0.2}
    draw_png(tmp_path / "p.png", [row])
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_two_runs_in_one_folder(tiny_yaml: Path, tmp_path: Path) -> None:
    """The second is refused in one line while the first is running; a kill releases the folder."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "saga_fast", "train", "--config", str(tiny_yaml), "--out", str(out), "--resume"]
    first = subprocess.Popen([*command, "--set", "saga.epochs=500"], stderr=subprocess.DEVNULL)
    try:
        while first.poll() is None and not (out / "last.pt").exists():
            time.sleep(0.01)
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr.strip() == f"saga-fast: error: another process trains into {out}: choose another --out"
    finally:
        first.kill()
        first.wait()
    third = subprocess.run([*command, "--set", "saga.epochs=500", "batch_size=9"], capture_output=True, text=True)
    assert "with another batch_size" in third.stderr


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "bad_images.txt"])
def test_files_of_others_in_the_run_folder(
    tiny_yaml: Path, tmp_path: Path, refuses: Callable[..., None], name: str
) -> None:
    (tmp_path / name).write_text("mine")
    arguments = ["train", "--config", tiny_yaml, "--out", tmp_path]
    refuses(arguments, tmp_path, name, "choose another --out")
    refuses([*arguments, "--resume"], name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_failed_before_its_first_checkpoint_starts_again(tiny_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cycle, "save_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(load_config(tiny_yaml, [f"out={out}"]))
    assert (out / "config.yaml").exists() and not (out / "last.pt").exists()
    train(load_config(tiny_yaml, [f"out={out}", "saga.epochs=0"]))
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
