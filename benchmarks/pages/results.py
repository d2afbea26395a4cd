"""The committed results."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from saga_fast.profile.figures import Row

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@cache
def document(name: str) -> dict[str, Any]:
    """The content of ``benchmarks/results/NAME.json``."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def rows_of(name: str) -> list[Row]:
    """The rows of a file of results."""
    rows: list[Row] = document(name)["rows"]
    return rows


def find(file: str, name: str, against: str | None = None) -> Row:
    """The row of this name in a file of results, and of this baseline if several rows share the name."""
    (row,) = [row for row in rows_of(file) if row["name"] == name and against in (None, row["against"])]
    return row


def commit_of(name: str) -> str:
    """The commit of a file of results, short."""
    commit: str = document(name)["commit"]
    return commit[:7]
