"""Interleaved timing, rows of figures and their JSON file, for profiles and benchmarks.

A row has a ``name``, one figure (a key of UNITS), the ``limit`` that it is compared with in the same unit, and
``ratio``: how many times as good as the limit, above 1 is better.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.runtime.files import write_text
from saga_fast.runtime.machine import provenance

Seconds = npt.NDArray[np.float64]
Row = dict[str, Any]
Ways = Mapping[str, Callable[[], object]]
UNITS = ("seconds", "images_per_second", "bytes", "bytes_per_second", "deviation", "accuracy")


def time_pairs(ways: Ways, *, repeats: int, warmup: int = 1) -> dict[str, Seconds]:
    """Seconds of each call: (repeats,) for each of the ways.

    The ways take turns, so that other load on the machine slows all of them alike.
    """
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


def compare(
    name: str, ours: Seconds, baseline: Seconds, *, against: str, images: int | None = None, **facts: Any
) -> Row:
    """A row with medians and percentiles of interleaved timings.

    ``p20`` and ``p80`` are percentiles of ``ours``; ``ratio``, ``ratio_p20`` and ``ratio_p80`` are those of the ratio
    of each pair of calls.

    Args:
        ours, baseline: (repeats,) seconds from one call of :func:`time_pairs`.
        against: name of the baseline.
        images: images per call; gives ``images_per_second`` in place of ``seconds``.
        facts: more columns, such as sizes and the target of ``ratio``.
    """
    unit = "seconds" if images is None else "images_per_second"
    figures, limits = (ours, baseline) if images is None else (images / ours, images / baseline)
    p20, p50, p80 = (float(q) for q in np.percentile(figures, [20, 50, 80]))
    limit = float(np.median(limits))
    low, ratio, high = (float(q) for q in np.percentile(baseline / ours, [20, 50, 80]))
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
    """Write rows with hardware, versions, commit and command to a JSON file.

    Args:
        path: the JSON file; its folder is created.
        rows: see the module's docstring; the row of a failed measurement has a ``name`` and an ``error``.
        of_commit: the commit, for a copy of a checkout that is not a git repository.
    """
    document = provenance() | ({"commit": of_commit} if of_commit else {}) | {"rows": list(rows)}
    write_text(path, json.dumps(document, indent=1) + "\n")


def line(row: Row) -> str:
    """A row as one line of text: name, figure, unit, ratio and limit."""
    if "error" in row:
        return f"{row['name']:44} failed: {row['error']}"
    unit = next(key for key in UNITS if key in row)
    target = f" (target {row['target']})" if "target" in row else ""
    return f"{row['name']:44} {row[unit]:12.6g} {unit:18} {row['ratio']:8.2f}x {row['against']}{target}"
