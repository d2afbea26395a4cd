"""Draws docs/study-gains.svg from the study's JSON: ``python -m benchmarks.study.plots``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.pages.markdown import METHOD_NAMES
from benchmarks.pages.results import ROOT, rows_of
from benchmarks.pages.study_rows import StudyRows
from benchmarks.study.arms import METHODS

OUT = ROOT / "docs" / "study-gains.svg"
STYLE: dict[Any, Any] = {  # Any: matplotlib 3.11 types the keys as literals, 3.9 as str
    "svg.hashsalt": "saga-fast",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def gains(rows: StudyRows, out: Path) -> None:
    """Each arm's gain over fine-tuning: a dot per seed, a bar at the mean; one panel per method."""
    arms = ("saga", "shuffled", "saga+", "true")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 3.2), facecolor="white", layout="constrained")
        panels = figure.subplots(1, len(METHODS), sharey=True)
        for axes, method in zip(panels, METHODS, strict=True):
            for place, arm in enumerate(arms):
                values = [100 * gain for gain in rows.where(stage="finals", method=method).gain(arm)]
                if values:
                    axes.bar(place, sum(values) / len(values), width=0.6, color="#c9d7ea")
                    axes.plot([place] * len(values), values, "o", color="#1f4e8c", markersize=4)
            axes.axhline(0.0, color="black", linewidth=0.8)
            axes.set_xticks(range(len(arms)), arms, rotation=30)
            axes.set_title(METHOD_NAMES[method], fontsize=10)
        panels[0].set_ylabel("kNN over fine-tuning, points")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    gains(StudyRows(rows_of("study")), OUT)


if __name__ == "__main__":
    main()
