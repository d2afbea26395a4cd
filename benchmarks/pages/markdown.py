"""Markdown of figures: tables, rates, and means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from saga_fast.report.groups import NAMES

NONE = "-"
METHOD_NAMES = NAMES


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def times(ratio: float) -> str:
    """A ratio with two or three digits."""
    if ratio >= 100.0:
        return f"{ratio:.0f}"
    return f"{ratio:.2f}" if ratio < 2.0 else f"{ratio:.2g}"


def megabytes(count: float) -> str:
    """Bytes, in MB, or in GB from 1 GB on."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def points(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and standard deviation over seeds, in percentage points; the number of seeds, if it is not three."""
    if not values:
        return NONE
    text = f"{100 * mean(values):{'+' if signed else ''}.1f}"
    if len(values) > 1:
        text += f" ± {100 * stdev(values):.1f}"
    return text if len(values) == 3 else f"{text} ({len(values)} seed{'s' * (len(values) > 1)})"
