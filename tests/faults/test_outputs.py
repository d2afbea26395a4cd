"""Outputs: devices and links stay what they are, no command replaces what it reads, and a full disk is one line."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_fast.attention.parts import parts_folder
from saga_fast.cli import main
from saga_fast.loaders import BoxTable
from saga_fast.loaders.engines import require_engine
from saga_fast.runtime.files import lock_file, replacing, write_text

Refuses = Callable[..., None]
Command = Callable[[Path], list[Any]]
HOLDER = """
import sys, time
from pathlib import Path
from saga_fast.runtime.files import lock_file
lock = lock_file(Path(sys.argv[1]))
assert lock is not None
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def commands(finished_run: Path, images: Path, tmp_path: Path) -> dict[str, Command]:
    """Each command that writes a file, by its name, as a function of the file."""
    import timm

    ckpt, table = finished_run / "last.pt", finished_run / "att" / "epoch_0001.safetensors"
    torch.save(timm.create_model("resnet18", num_classes=2).state_dict(), tmp_path / "foreign.pth")
    eval_knn = ["eval", "knn", "--ckpt", ckpt, "--data", images / "val", "--k", "3", "--json"]
    return {
        "export": lambda out: ["export", ckpt, "--to", "timm", "--out", out],
        "build-att": lambda out: ["build-att", "--ckpt", ckpt, "--out", out],
        "report": lambda out: ["report", finished_run, "--out", out],
        "import": lambda out: ["import", tmp_path / "foreign.pth", "--out", out],
        "show-att": lambda out: ["show-att", table, "--data", images / "train", "--count", "2", "--out", out],
        "eval": lambda out: [*eval_knn, out],
    }


NAMES = ["export", "build-att", "report", "import", "show-att", "eval"]


def run(arguments: list[Any]) -> int:
    return main([str(argument) for argument in arguments])


def ending(name: str) -> str:
    return ".png" if name == "show-att" else ".x"


@pytest.mark.parametrize("name", NAMES)
def test_a_device_and_a_fifo_are_written_into(commands: dict[str, Command], tmp_path: Path, name: str) -> None:
    fifo, received = tmp_path / f"fifo{ending(name)}", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()), daemon=True)
    reader.start()
    assert run(commands[name](fifo)) == 0
    reader.join(10)
    assert fifo.is_fifo()
    assert len(received[0]) > 100
    device = tmp_path / f"null{ending(name)}"
    try:
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    assert run(commands[name](device)) == 0
    assert device.is_char_device()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["foreign.pth", fifo.name, device.name])


@pytest.mark.parametrize("name", NAMES)
def test_a_link_stays_and_its_target_is_replaced(commands: dict[str, Command], tmp_path: Path, name: str) -> None:
    target, link = tmp_path / "deep" / "target", tmp_path / f"link{ending(name)}"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    assert run(commands[name](link)) == 0
    assert link.is_symlink()
    assert target.stat().st_size > 100
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_links_to_nothing_and_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "new").symlink_to("made")
    write_text(tmp_path / "new", "content")
    assert (tmp_path / "made").read_text() == "content"
    assert (tmp_path / "new").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_text(tmp_path / "loop", "content")
    assert (tmp_path / "loop").is_symlink()


def test_stdout_is_written_into(tmp_path: Path) -> None:
    link = tmp_path / "stdout"  # not /dev/stdout itself, which a mistake would replace where root runs the tests
    link.symlink_to("/proc/self/fd/1")
    script = f"from saga_fast.runtime.files import *; print('first'); write_text(Path({str(link)!r}), 'second\\n')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", f"{script}; print('third')"], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "first\nsecond\nthird\n"


def test_a_failed_block_writes_nothing_into_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(RuntimeError), replacing(tmp_path / "fifo") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert os.read(handle, 10) == b""
    os.close(handle)


def test_pack_refuses_what_holds_no_beton(images: Path, tmp_path: Path, refuses: Refuses) -> None:
    require_engine("ffcv")
    fifo = tmp_path / "fifo.beton"
    os.mkfifo(fifo)
    refuses(["pack", images / "train", fifo, "--force"], fifo, "name a file")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.beton"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(finished_run: Path, images: Path, tmp_path: Path) -> Path:
    """A folder with a run, its images and a list of classes, which a wrong output would damage."""
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(images, tmp_path / "data")
    shutil.copy(finished_run / "last.pt", tmp_path / "c.pt")
    shutil.copy(finished_run / "att" / "epoch_0001.safetensors", tmp_path / "t.png")
    (tmp_path / "same.pt").symlink_to("c.pt")
    (tmp_path / "classes.txt").write_text("cat\n")
    return tmp_path


INPUTS = [
    "build-att --ckpt c.pt --out c.pt",
    "build-att --ckpt c.pt --out same.pt",
    "build-att --ckpt c.pt --data data/train --out data/train/cat/000.jpg",
    "report run --out run/metrics.jsonl",
    "report run --out run/last.pt",
    "report run --out run/att/epoch_0001.safetensors",
    "show-att t.png --data data/train --out t.png",
    "show-att run/att/epoch_0001.safetensors --data data/train --out t.png --other t.png",
    "eval knn --ckpt c.pt --data data/val --json c.pt",
    "eval knn --ckpt c.pt --data data/val --classes classes.txt --json classes.txt",
    "eval boxes --table t.png --data data/train --json t.png",
    "eval pairs --ckpt c.pt --data data/val --png c.pt",
    "eval pairs --ckpt c.pt --data data/val --png x.png --json x.png",
    "export c.pt --to timm --out c.pt",
    "import c.pt --out new --config-out new",
    "import c.pt --out ./new --config-out deep/../new",
    "profile att --ckpt c.pt --json c.pt",
    "pack data/train classes.txt --classes classes.txt --force",
]


@pytest.mark.parametrize("command", INPUTS)
def test_no_output_replaces_an_input(
    place: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses, command: str
) -> None:
    monkeypatch.chdir(place)
    if command.startswith("pack"):
        require_engine("ffcv")
    before = contents(place)
    refuses(command.split(), "name another file")
    assert contents(place) == before


def test_training_does_not_replace_its_checkpoint(
    place: Path, tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.chdir(place)
    (place / "run" / "last.pt").rename(place / "run" / "epoch_0001.pt")
    before = contents(place)
    refuses(["train", "--config", tiny_yaml, "--out", "run", "--ckpt", "run/epoch_0001.pt"], "another --out")
    refuses(["train", "--config", tiny_yaml, "--out", "run", "--ckpt", "./run/../run/epoch_0001.pt"], "another --out")
    assert contents(place) == before


def test_a_page_in_a_run_folder_is_written_again(place: Path) -> None:
    for _ in range(2):
        assert run(["report", place / "run", "--out", place / "run" / "report.html"]) == 0


def test_a_lock_is_held_once_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert lock_file(path) is None
        process.kill()
    lock = lock_file(path)
    assert lock is not None
    assert lock_file(path) is None
    path.unlink()
    lock.close()
    again = lock_file(path)
    assert again is not None
    again.close()


def test_a_second_build_att_of_one_table_keeps_no_parts(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, arguments = tmp_path / "t.safetensors", ["build-att", "--ckpt", finished_run / "last.pt", "--out"]
    assert run([*arguments, tmp_path / "expected.safetensors"]) == 0
    parts = parts_folder(out)
    lock = lock_file(parts.with_suffix(".lock"))
    assert lock is not None
    parts.mkdir()
    (parts / "part_000000000.safetensors").write_bytes(b"of the first command")
    caplog.set_level("INFO")
    assert run([*arguments, out]) == 0
    assert [str(out) in record.getMessage() for record in caplog.records if "another command" in record.getMessage()]
    assert contents(parts) == {parts / "part_000000000.safetensors": b"of the first command"}
    assert BoxTable.open(out).boxes.tobytes() == BoxTable.open(tmp_path / "expected.safetensors").boxes.tobytes()
    lock.close()
    assert run([*arguments, out]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.safetensors", "t.safetensors"]


@contextmanager
def file_size_limit() -> Iterator[None]:
    """No file may grow beyond 1 KiB: the kernel refuses the write as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    "command",
    [
        "export {ckpt} --to torchvision --out {tmp}/x.pth",
        "eval linear --ckpt {ckpt} --data {images} --epochs 1 --lr 0.1 --batch-size 8 --out {tmp}/probe",
    ],
)
def test_a_full_disk_is_one_line(
    finished_run: Path, images: Path, tmp_path: Path, command: str, refuses: Refuses
) -> None:
    words = command.format(ckpt=finished_run / "last.pt", images=images, tmp=tmp_path).split()
    with file_size_limit():
        refuses(words, "too large", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
