"""Folders that cannot be written: one line, exit code 2, and everything in them as it was."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.torture.full_disk import can_mount, disk
from saga_fast.cli import main
from saga_fast.loaders.engines import require_engine


@pytest.fixture
def protected(finished_run: Path, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A folder with a copy of a run, and with ``x.beton``, to be made read-only."""
    folder = tmp_path / "protected"

    def fill() -> None:
        shutil.copytree(finished_run, folder / "run")
        (folder / "x.beton").write_bytes(b"old")

    if can_mount():  # root may write to any folder, but not to any file system
        with disk(folder, 2**24) as place:
            fill()

            def protect() -> Path:
                place.protect()
                return folder

            yield protect
    elif os.geteuid() == 0:
        pytest.skip("root writes everywhere, and may not mount here")
    else:
        folder.mkdir()
        fill()
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]

        def protect() -> Path:
            for path in folders:
                path.chmod(0o555)
            return folder

        yield protect
        for path in folders:
            path.chmod(0o755)


def test_every_command_that_writes(
    protected: Callable[[], Path], tiny_yaml: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    require_engine("ffcv")
    folder = protected()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config, ckpt = str(tiny_yaml), str(folder / "run" / "last.pt")
    for command in (
        ["train", "--config", config, "--out", str(folder / "new")],
        ["train", "--config", config, "--out", str(folder / "run"), "--resume"],
        ["build-att", "--ckpt", ckpt, "--out", str(folder / "t.safetensors"), "--device", "cpu"],
        ["pack", str(images / "train"), str(folder / "x.beton"), "--force"],
        ["pack", str(images / "train"), str(folder / "y.beton")],
    ):
        assert main(command) == 2, command
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line]
        assert line.startswith("saga-fast: error:") and str(folder) in line, (command, line)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
