"""The ffcv benchmark runs, at sizes that measure nothing, and writes what it should. No figure is judged here."""

from pathlib import Path

from test_benchmarks import check_schema, figures

from saga_fast.loaders.engines import require_engine


def test_bench_ffcv(tmp_path: Path) -> None:
    require_engine("ffcv")
    written = figures("bench_ffcv.py", ["--width", "64", "--epochs", "6", "--rows", "100"], tmp_path)
    check_schema(written)
    assert sorted(row["target"] for row in written["rows"] if "target" in row) == [1.0, 1.0, 1.0, 1.0, 1.5]
    assert any(row["name"].startswith("noise") for row in written["rows"])
