"""benchmarks/gpu.py runs on the CPU at sizes that measure nothing, also without the optional packages."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_kernels
from benchmarks.gpu_timing import Bench
from benchmarks.pages.gpu import speeds_of
from saga_fast.profile.figures import UNITS, Row

ROOT = Path(__file__).parents[1]
SMALL = ["--device", "cpu", "--small", "--seed", "0"]
OPTIONAL = ("ffcv", "nvidia.dali", "skimage", "sklearn", "pytorch_grad_cam")


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that the script writes; its table has a line per row."""
    missing = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in OPTIONAL)
    (folder / "sitecustomize.py").write_text(missing)  # each process imports it
    command = [sys.executable, "benchmarks/gpu.py", *SMALL, *arguments, "--out", str(folder / "new")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    written: dict[str, Any] = json.loads((folder / "new" / "gpu.json").read_text())
    assert all(row["name"] in ran.stdout for row in written["rows"])
    failed = {row["name"] for row in written["rows"] if "error" in row}
    assert all("dali" in name or "ffcv" in name for name in failed), ran.stdout + ran.stderr
    assert ran.returncode == (1 if failed else 0)
    return written


def check_rows(rows: list[Row]) -> None:
    """Each row that did not fail has one figure, and what it is compared with."""
    for row in rows:
        if "error" not in row:
            assert isinstance(row["against"], str)
            (figure,) = set(UNITS) & set(row)
            assert row["ratio"] > 0.0 and row["limit"] > 0.0 and row[figure] >= 0.0


@pytest.mark.slow
def test_cpu_dry_run_without_optional_packages(tmp_path: Path) -> None:
    names = [name for name in gpu.SECTIONS if name != "commands"]
    written = run(tmp_path, "--commit", "abc", "--sections", ",".join(names))
    assert list(written) == ["hardware", "versions", "commit", "command", "rows"]
    assert written["commit"] == "abc"
    check_rows(written["rows"])
    assert {row["section"] for row in written["rows"]} == set(names)
    assert {row["impl"] for row in written["rows"] if "impl" in row} == {"numba"}
    predicted = [row for row in written["rows"] if "1,281,167" in row["name"]]
    assert predicted and all(row["bottleneck"] in row["limits_images_per_second"] for row in predicted)
    assert all(row["views_share"] > 0.0 for row in written["rows"] if row["section"] == "methods")


@pytest.mark.slow
def test_commands_and_a_resumed_run(tmp_path: Path) -> None:
    rows = run(tmp_path, "--sections", "commands")["rows"]
    check_rows(rows)
    commands = ["train, killed", "train", "train --resume", "build-att", "eval knn"]
    assert [row["name"] for row in rows] == [*(f"command {name}" for name in commands), "losses of the resumed run"]
    assert rows[-1]["equal"]


def raises(bench: Bench) -> Iterator[Row]:
    yield from gpu_kernels.time_copy(bench)
    raise RuntimeError("no such engine\nand more")


def dies(bench: Bench) -> Iterator[Row]:
    yield from gpu_kernels.time_copy(bench)
    os.abort()


def hangs(bench: Bench) -> Iterator[Row]:
    yield from gpu_kernels.time_copy(bench)
    time.sleep(1000.0)


@pytest.mark.slow
def test_failing_sections_keep_their_rows_and_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"engines": "RuntimeError: no such engine", "decode": "the process ended with -6", "boxes": "killed after"}
    for name, broken in zip(errors, (raises, dies, hangs), strict=True):
        monkeypatch.setitem(gpu.SECTIONS, name, replace(gpu.SECTIONS[name], run=broken, limit=20.0))
    monkeypatch.setitem(gpu.SECTIONS, "boxes", replace(gpu.SECTIONS["boxes"], limit=4.0))
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", *SMALL, "--sections", ",".join([*errors, "copy"]), "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["section"] for row in rows] == [*(name for name in errors for _ in range(2)), "copy"]
    table = capsys.readouterr().out
    for row, (name, error) in zip(rows[1::2], errors.items(), strict=False):
        assert row["name"] == f"section {name}" and row["error"].startswith(error)
        assert f"section {name}" in table


def test_the_pages_table_has_a_line_per_row() -> None:
    written = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())
    written["rows"] = [row for row in written["rows"] if row["section"] in ("crop_resize", "rebuild")]
    head, _, *lines = speeds_of(written).splitlines()
    assert head.endswith("| speed | baseline | ratio |") and head.startswith("| NVIDIA ")
    assert [line.split(" | ")[0] for line in lines] == [
        "| rebuild from a folder of JPEGs, nvJPEG",
        "| the same for ImageNet's 1.28 M images, predicted",
        "| rebuild from packed JPEGs, FFCV",
        "| two crops each of 256 images",
    ]


def test_all_sections_end_within_six_minutes() -> None:
    assert gpu.longest(list(gpu.SECTIONS.values())) <= 360.0


def test_time_that_is_over_measures_nothing_more() -> None:
    bench = Bench(torch.device("cpu"), small=True, seed=0, deadline=0.0)
    with pytest.raises(TimeoutError, match="time is over"):
        next(gpu_kernels.time_copy(bench))


def test_a_dry_run_makes_each_call_once() -> None:
    bench = Bench(torch.device("cpu"), small=True, seed=0, dry=True)
    (row,) = gpu_kernels.time_copy(bench)
    assert row["bytes_per_second"] == 2 * 2**22
