"""Importing through the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from saga_fast.cli import main


def written(source: Path | dict[str, Any], folder: Path) -> Path:
    """A file with this content."""
    if isinstance(source, Path):
        return source
    torch.save(source, folder / "theirs.pth")
    return folder / "theirs.pth"


def run_import(source: Path | dict[str, Any], folder: Path, *options: Any) -> Path:
    """The checkpoint that is made of a file or of a file with this content."""
    out = folder / "ours.pt"
    assert main(["import", str(written(source, folder)), "--out", str(out), *map(str, options)]) == 0
    return out


def refusal(source: Path | dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], *options: Any) -> str:
    """The one line on stderr of an import that is refused and leaves nothing behind."""
    ckpt, out = written(source, folder), folder / "ours.pt"
    capsys.readouterr()
    assert main(["import", str(ckpt), "--out", str(out), *map(str, options)]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith("saga-fast: error: ")
    assert error.count("\n") == 1
    assert not out.exists()
    return error
