"""Accuracy by epoch (SAGA, Fig. 3) as a PNG file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from saga_fast.runtime.files import replacing

COLOURS = ("#5f6a72", "#c2570c", "#0b6bb8", "#2f7d32")


def draw_curves(path: Path, curves: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], *, title: str) -> None:
    """Draw one panel per method, with a line per arm: the mean over seeds, and a band of one standard deviation.

    Args:
        path: the PNG file, written atomically.
        curves: method -> arm -> epoch -> top-1 in percent of each seed.
        title: the figure's heading.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(1.2 + 3.4 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (method, arms) in zip(panels, curves.items(), strict=True):
        for colour, (arm, points) in zip(COLOURS, arms.items(), strict=False):
            epochs = sorted(points)
            means = [statistics.fmean(points[epoch]) for epoch in epochs]
            deviations = [statistics.stdev(values) if len(values := points[epoch]) > 1 else 0.0 for epoch in epochs]
            axes.plot(epochs, means, marker="o", markersize=4, color=colour, label=arm)
            low, high = (
                [mean + sign * deviation for mean, deviation in zip(means, deviations, strict=True)] for sign in (-1, 1)
            )
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(method, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("top-1 (%)")
    figure.suptitle(title, fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
