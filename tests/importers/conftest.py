"""Importing through the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_fast.cli import main


@pytest.fixture
def run_import(tmp_path: Path) -> Callable[..., Path]:
    """run_import(file or content, *options): the checkpoint that was made."""

    def run(source: Path | dict[str, Any], *options: Any) -> Path:
        ckpt = source if isinstance(source, Path) else tmp_path / "theirs.pth"
        if isinstance(source, dict):
            torch.save(source, ckpt)
        out = tmp_path / "ours.pt"
        assert main(["import", str(ckpt), "--out", str(out), *map(str, options)]) == 0
        return out

    return run


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refusal(file or content, *options): the one line on stderr of an import that is refused."""

    def run(source: Path | dict[str, Any], *options: Any) -> str:
        ckpt = source if isinstance(source, Path) else tmp_path / "theirs.pth"
        if isinstance(source, dict):
            torch.save(source, ckpt)
        capsys.readouterr()
        out = tmp_path / "ours.pt"
        assert main(["import", str(ckpt), "--out", str(out), *map(str, options)]) == 2
        printed, error = capsys.readouterr()
        assert printed == ""
        assert error.startswith("saga-fast: error: ")
        assert error.count("\n") == 1
        assert not out.exists()
        return error

    return run
