"""benchmarks/gpu.py runs on the CPU at sizes that measure nothing, also without the optional packages."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_kernels
from benchmarks.gpu_timing import Bench
from saga_fast.profile.figures import UNITS, Row

ROOT = Path(__file__).parents[1]
SMALL = ["--device", "cpu", "--small", "--seed", "0"]
WITHOUT = """
import runpy, sys
for name in ("pydantic", "ffcv", "nvidia.dali", "skimage", "sklearn", "pytorch_grad_cam"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """The JSON that the script writes; its table has a line per row."""
    words = [sys.executable, *command, *SMALL, "--out", str(folder / "new")]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written: dict[str, Any] = json.loads((folder / "new" / "gpu.json").read_text())
    assert all(row["name"] in ran.stdout for row in written["rows"])
    return written


@pytest.mark.slow
def test_cpu_dry_run_without_optional_packages(tmp_path: Path) -> None:
    written = run(["-c", WITHOUT, "benchmarks/gpu.py", "--commit", "abc"], tmp_path)
    assert list(written) == ["hardware", "versions", "commit", "command", "rows"]
    assert written["commit"] == "abc"
    for row in written["rows"]:
        assert "error" not in row and isinstance(row["against"], str)
        (figure,) = set(UNITS) & set(row)
        assert row["ratio"] > 0.0 and row["limit"] > 0.0 and row[figure] >= 0.0
    assert {row["section"] for row in written["rows"]} == set(gpu.SECTIONS)
    assert {row["impl"] for row in written["rows"] if "impl" in row} == {"numba"}
    predicted = [row for row in written["rows"] if "1,281,167" in row["name"]]
    assert predicted and all(row["bottleneck"] in row["stages_images_per_second"] for row in predicted)
    assert all(row["augmentation_share"] > 0.0 for row in written["rows"] if row["section"] == "training")


def test_a_failing_section_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> Iterator[Row]:
        yield from gpu_kernels.time_copy(bench)
        raise RuntimeError("no such engine\nand more")

    monkeypatch.setitem(gpu.SECTIONS, "rebuild", (broken, 1.0))
    monkeypatch.setattr(sys, "argv", ["gpu.py", *SMALL, "--sections", "rebuild,copy", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    kept, error, copied = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert kept["section"] == "rebuild" and copied["section"] == "copy"
    assert error["error"] == "RuntimeError: no such engine"
    assert "section rebuild" in capsys.readouterr().out


def test_time_that_is_over_measures_nothing_more() -> None:
    bench = Bench(torch.device("cpu"), small=True, seed=0, deadline=0.0)
    with pytest.raises(TimeoutError, match="time is over"):
        next(gpu_kernels.time_copy(bench))
