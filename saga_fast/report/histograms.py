"""Histograms of positive-pair similarity (SAGA, Fig. 4) as a PNG file, from rows of ``saga-fast eval pairs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saga_fast.runtime.files import replacing

STYLES = {"plain": ("plain crops", "#0b6bb8"), "attention": ("attention crops", "#c2570c")}

Row = Mapping[str, Any]


def grouped(rows: Sequence[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """Rows by (name of the checkpoint, epoch), then by kind of crop."""
    groups: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((str(row.get("name", "")), int(row["epoch"])), {})[str(row["views"])] = row
    return groups


def density(row: Row) -> list[float]:
    """The fraction of the pairs in each bin."""
    total = sum(row["counts"]) or 1
    return [count / total for count in row["counts"]]


def draw_png(path: Path, rows: Sequence[Row]) -> None:
    """Draw one panel per checkpoint with one histogram per kind of crop, on common axes.

    Args:
        path: the PNG file, written atomically.
        rows: each with ``name``, ``epoch``, ``views``, ``edges``, ``counts``, ``mean``.
    """
    from matplotlib.figure import Figure

    groups = grouped(rows)
    figure = Figure(figsize=(3.6 * len(groups), 3.2), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for axes, ((name, epoch), by_views) in zip(panels, groups.items(), strict=True):
        for views, (crops, colour) in STYLES.items():
            if (row := by_views.get(views)) is None:
                continue
            label = f"{crops}, mean {row['mean']:.3f}"
            axes.stairs(density(row), row["edges"], fill=True, alpha=0.3, color=colour)
            axes.stairs(density(row), row["edges"], color=colour, linewidth=1.5, label=label)
            axes.axvline(row["mean"], color=colour, linestyle="--", linewidth=1.2)
        axes.set_title(f"{name}, epoch {epoch}", fontsize=10, parse_math=False)  # a run may be called a$b$
        axes.set_xlabel("cosine similarity of positive pairs")
        axes.legend(fontsize=8, loc="upper left", frameon=False)
        axes.set_xlim(lowest_edge(rows), 1.0)
        axes.margins(y=0.25)
    panels[0].set_ylabel("fraction of the pairs")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def lowest_edge(rows: Sequence[Row]) -> float:
    """The lowest edge of the non-empty bins, -1 if all are empty."""
    used = [edge for row in rows for edge, count in zip(row["edges"], row["counts"], strict=False) if count]
    return min(used, default=-1.0)
