"""The benchmark of the kernels runs, and its file has the hardware, the versions, the commit and the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saga_fast.profile.figures import compare, time_pairs

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_small_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "kernels.json"
    command = [sys.executable, "benchmarks/bench_kernels.py", "--small", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    table = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    document = json.loads(out.read_text())
    assert set(document) == {"hardware", "versions", "commit", "command", "rows"}
    assert document["hardware"]["cores"] >= 1 and "numba" in document["versions"]
    assert document["command"] == "python benchmarks/bench_kernels.py --small --out kernels.json"
    for row in document["rows"]:
        figures = [row[unit] for unit in ("seconds", "images_per_second", "bytes") if unit in row]
        assert len(figures) == 1 and min(figures[0], row["limit"], row["ratio"]) > 0.0 and row["name"] in table
    names = {row["name"].split(",")[0] for row in document["rows"]}
    ops = {"attention_boxes", "sample_windows", "sample_photometrics", "crop_resize", "augment", "bank_logits"}
    assert names == ops


def test_ratios_are_of_pairs() -> None:
    """A slow minute that hits both sides of a pair leaves the ratio as it is."""
    ours, other = np.array([1.0, 8.0, 1.0, 1.0, 1.0]), np.array([2.0, 16.0, 2.0, 2.0, 6.0])
    row = compare("op", ours, other, against="the other way", target=2.0)
    assert (row["seconds"], row["limit"], row["ratio"], row["target"]) == (1.0, 2.0, 2.0, 2.0)
    row = compare("op", ours, other, against="the other way", images=10)
    assert (row["images_per_second"], row["limit"], row["ratio"]) == (10.0, 5.0, 2.0)
    assert row["p20"] <= row["p80"] and row["ratio_p80"] == pytest.approx(2.8)


def test_ways_take_turns() -> None:
    calls: list[str] = []
    seconds = time_pairs({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert "".join(calls) == "ab" + "abab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
