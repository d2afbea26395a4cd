"""The ffcv benchmark runs, at sizes that measure nothing, and writes rows of the schema. No figure is judged here."""

from pathlib import Path

import pytest
from test_benchmarks import loading_figures, targets

from saga_fast.loaders.engines import require_engine


@pytest.mark.slow
def test_bench_ffcv(tmp_path: Path) -> None:
    require_engine("ffcv")
    written = loading_figures("bench_ffcv", ["--width", "64", "--epochs", "6", "--rows", "100"], tmp_path)
    assert targets(written) == [0.8, 1.0, 1.0, 1.0, 1.0, 1.5, 2.0]
    assert any(row["name"].startswith("noise") for row in written["rows"])
