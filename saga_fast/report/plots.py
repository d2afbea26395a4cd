"""Line plots by epoch and histograms as inline SVG.

The SVG contains no run names, which are in the page's legend, and no fixed colours: each colour is a CSS variable, so
one plot serves light and dark mode. matplotlib is imported where it draws: it takes 0.3 s, and commands that draw
nothing import this file, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from saga_fast.report.runs import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Unit = Literal["number", "fraction", "percent"]
MIN_SPAN = 0.1
COLOURS = 8  # --run-0 to --run-7 in the template
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (8, 1.5, 1.5, 1.5), (1.5, 1.5))

# matplotlib cannot draw with CSS variables: it draws with these unused colours, which _inline() replaces.
_INK, _GRID, _RUN = "#fe0100", "#fe0200", "#fe00{:02x}"
_RC: dict[Any, Any] = {  # Any: matplotlib 3.11 types the keys as literals, 3.9 as str
    "svg.fonttype": "none",  # text stays text: selectable, small, in the page's font
    "svg.hashsalt": "saga-fast",  # the same ids in every run: reports can be compared byte by byte
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One run's line; ``style`` is the run's position in the report and fixes its colour and dashes."""

    name: str
    style: int
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot's heading and its SVG."""

    title: str
    svg: Markup


def colour(style: int) -> str:
    """The CSS colour of the run at this position."""
    return f"var(--run-{style % COLOURS})"


def dashes(style: int) -> tuple[float, ...]:
    """The dash pattern of the run at this position, in line widths; empty for a solid line."""
    return DASHES[style % len(DASHES)]


def line_plot(
    title: str, series: Sequence[Series], *, key: str, unit: Unit = "number", markers: bool = False
) -> Plot | None:
    """A line plot of the series that have points, None if no series has any.

    Args:
        title: the heading, also the start of the text alternative.
        series: the runs' lines.
        key: a name unique in the page, the prefix of the SVG's ids.
        unit: ``fraction`` for values in [0, 1]: the axis covers at least 0.1, so that noise does not fill the plot, and
            does not go beyond 0 and 1. ``percent`` draws the same values times 100.
        markers: whether to mark each point, for curves of few points.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in series if line.points]
    if not lines:
        return None
    scale = 100.0 if unit == "percent" else 1.0
    with mpl.rc_context(_RC):
        # 274 pt wide, shown at 270 px (four in a row) to 370 px: 10 pt labels stay readable at both widths.
        figure = Figure(figsize=(3.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            epochs, values = zip(*line.points, strict=True)
            axes.plot(
                epochs,
                [scale * value for value in values],
                color=_RUN.format(line.style % COLOURS),
                linestyle=(0, dashes(line.style)) if dashes(line.style) else "solid",
                linewidth=2.0,
                marker="o" if markers or len(line.points) == 1 else "",
                markersize=4.5,
            )
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("epoch")
        if unit != "number":
            axes.set_ylim(_fraction_limits(*axes.get_ylim(), scale))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        return Plot(title=title, svg=_finish(figure, key, _describe(title, lines, unit)))


def histogram_plot(
    title: str, series: Sequence[tuple[int | None, Mapping[str, Any]]], *, key: str, limits: tuple[float, float]
) -> Plot:
    """Overlaid histograms of positive-pair similarity, each with its mean as a vertical line.

    Args:
        title: the heading, also the start of the text alternative.
        series: (position of the run, which fixes the colour, or None for the text colour; row of
            ``saga-fast eval pairs``).
        key: see :func:`line_plot`.
        limits: limits of the horizontal axis.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(_RC):
        figure = Figure(figsize=(3.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for style, row in series:
            ink = _INK if style is None else _RUN.format(style % COLOURS)
            total = sum(row["counts"]) or 1
            heights = [100.0 * count / total for count in row["counts"]]
            line_style = (0, (4, 2)) if style is None else "solid"
            if style is not None:
                axes.stairs(heights, row["edges"], fill=True, alpha=0.25, color=ink, linewidth=0.0)
            axes.stairs(heights, row["edges"], color=ink, linewidth=1.8, linestyle=line_style)
            axes.axvline(row["mean"], color=ink, linewidth=1.2, linestyle=line_style)
        axes.set_xlim(*limits)
        axes.set_ylim(bottom=0.0)
        axes.grid(linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("cosine similarity")
        axes.set_ylabel("pairs (%)")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        means = "; ".join(
            f"{row['views']} crops: mean {row['mean']:.3f}, deviation {row['std']:.3f}" for _, row in series
        )
        return Plot(title=title, svg=_finish(figure, key, f"{title}, similarity of positive pairs. {means}."))


def _finish(figure: Figure, key: str, label: str) -> Markup:
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _inline(buffer.getvalue(), key=key, label=label)


def _fraction_limits(low: float, high: float, scale: float) -> tuple[float, float]:
    """Axis limits around [low, high] that span at least ``MIN_SPAN * scale`` within [0, scale]."""
    missing = max(scale * MIN_SPAN - (high - low), 0.0)
    low, high = low - missing / 2, high + missing / 2
    margin = 0.01 * scale  # a marker's radius, so that a marker at 0 or 1 is not cut
    shift = max(-margin - low, 0.0) - max(high - scale - margin, 0.0)
    return max(low + shift, -margin), min(high + shift, scale + margin)


def _describe(title: str, series: Sequence[Series], unit: Unit) -> str:
    """The text alternative: the first and the last point of each line."""

    def describe_point(point: Point) -> str:
        epoch, value = point
        return f"{100 * value:.1f} % at epoch {epoch}" if unit == "percent" else f"{value:.3g} at epoch {epoch}"

    def describe_line(line: Series) -> str:
        first, last = line.points[0], line.points[-1]
        points = (first,) if first == last else (first, last)
        return f"{line.name} {', '.join(describe_point(point) for point in points)}"

    return f"{title}, by epoch: {'; '.join(describe_line(line) for line in series)}."


def _inline(svg: str, *, key: str, label: str) -> Markup:
    """matplotlib's SVG file as an element of the page, with unique ids and the page's colours."""
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None
    body = svg[svg.index(">", view_box.end()) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # its "*" selector would apply to the whole page
    body = re.sub(r' id="([^"]+)"', rf' id="{key}-\1"', body)
    body = body.replace("url(#", f"url(#{key}-").replace('xlink:href="#', f'href="#{key}-')
    body = re.sub(r"#fe00([0-9a-f]{2})", lambda match: colour(int(match[1], 16)), body)
    body = body.replace(_INK, "var(--ink)").replace(_GRID, "var(--grid)")
    root = Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}">').format(view_box[1], label)
    return root + Markup(body) + Markup("</svg>")
