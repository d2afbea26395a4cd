"""What every benchmark shares: interleaved timing, rows of figures, and the file they are written to.

A row has a ``name``, one figure (a key of UNITS), the ``limit`` it is measured against in the same unit, and ``ratio``:
how many times as good as the limit, above 1 is better.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.runtime.machine import provenance

Seconds = npt.NDArray[np.float64]
Row = dict[str, Any]
Ways = Mapping[str, Callable[[], object]]
UNITS = ("seconds", "images_per_second", "bytes", "bytes_per_second", "deviation", "accuracy")


def time_pairs(ways: Ways, *, repeats: int, warmup: int = 1) -> dict[str, Seconds]:
    """Seconds of each call, (repeats,) per way. The ways take turns, so that a noisy minute slows all of them alike."""
    for way in ways.values():
        for _ in range(warmup):
            way()
    seconds = {name: np.empty(repeats) for name in ways}
    for i in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name][i] = time.perf_counter() - begin
    return seconds


def compare(name: str, ours: Seconds, other: Seconds, *, against: str, images: int | None = None, **facts: Any) -> Row:
    """A row from interleaved timings: medians, 20th and 80th percentiles of ours, and those of the pairs' ratios.

    Args:
        ours, other: (repeats,) seconds from :func:`time_pairs`, taken in turn.
        against: what ``other`` is.
        images: images per call; gives ``images_per_second`` in place of ``seconds``.
        facts: more columns, such as sizes and the target of ``ratio``.
    """
    unit = "seconds" if images is None else "images_per_second"
    figures, others = (ours, other) if images is None else (images / ours, images / other)
    p20, p50, p80 = (float(q) for q in np.percentile(figures, [20, 50, 80]))
    limit = float(np.median(others))
    low, ratio, high = (float(q) for q in np.percentile(other / ours, [20, 50, 80]))
    return {
        "name": name,
        unit: p50,
        "p20": p20,
        "p80": p80,
        "limit": limit,
        "against": against,
        "ratio": ratio,
        "ratio_p20": low,
        "ratio_p80": high,
        **facts,
    }


def write(path: Path, rows: Sequence[Row], *, of_commit: str | None = None) -> None:
    """Write the rows with hardware, versions, commit and command.

    Args:
        path: the JSON file.
        rows: see above; the row of a failed measurement has a ``name`` and an ``error``.
        of_commit: the commit, for a copy of a checkout that is not a git repository.
    """
    document = provenance() | ({"commit": of_commit} if of_commit else {}) | {"rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def line(row: Row) -> str:
    """A row for the eye: name, figure, and how it compares."""
    if "error" in row:
        return f"{row['name']:44} failed: {row['error']}"
    unit = next(key for key in UNITS if key in row)
    target = f" (target {row['target']})" if "target" in row else ""
    return f"{row['name']:44} {row[unit]:12.6g} {unit:18} {row['ratio']:8.2f}x {row['against']}{target}"
