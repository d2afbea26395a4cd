"""The scaffold of every benchmark: its command line, its cores, and rows that are shown and written as they come."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import torch

from saga_fast.profile.figures import Row, Seconds, compare, line, write

DATA = Path(tempfile.gettempdir()) / "saga-fast-benchmarks"
"""Default folder of generated images, which later runs find there."""


def benchmark_parser(description: str | None, *, out: str = "JSON file for the rows") -> argparse.ArgumentParser:
    """A command line with ``--out``, described by the script's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=out)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``, the folder of generated images."""
    parser.add_argument("--data", type=Path, default=DATA, help="folder that keeps the images; default: %(default)s")


def add_threads(parser: argparse.ArgumentParser, *, default: int) -> None:
    """Add ``--threads``; the caller passes its value to :func:`use_cores`."""
    parser.add_argument("--threads", type=int, default=default, help="cores of this process; default: %(default)s")


def use_cores(count: int) -> None:
    """Restrict this process and its children to ``count`` cores, and its thread pools to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < count:
            raise SystemExit(f"--threads {count}, but this process may use {len(cores)} cores")
        os.sched_setaffinity(0, cores[:count])
    numba.set_num_threads(count)
    torch.set_num_threads(count)


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON file of figures; [] if there is none."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return rows


def record(
    out: Path,
    rows: Iterable[Row],
    *,
    kept: Sequence[Row] = (),
    show: Callable[[Row], str] = line,
    of_commit: str | None = None,
) -> list[Row]:
    """Print each row as it comes, and write all of them with their provenance: a run that is cut short keeps its rows.

    Args:
        out: the JSON file.
        rows: measured while they are iterated.
        kept: earlier rows that stay in the file, before the new ones.
        show: a row's line.
        of_commit: the commit, for a copy of a checkout that is not a git repository.

    Returns:
        The rows of the file.
    """
    written = list(kept)
    for row in rows:
        written.append(row)
        write(out, written, of_commit=of_commit)
        print(show(row), flush=True)
    return written


class Pair(NamedTuple):
    """A row of interleaved timings: a way, and the way that it is compared with.

    Attributes:
        name: the row's name.
        way, baseline: keys of the timings.
        against: the baseline in words.
        target: of the ratio, or None.
    """

    name: str
    way: str
    baseline: str
    against: str
    target: float | None = None


def compare_pairs(seconds: Mapping[str, Seconds], pairs: Iterable[Pair], *, images: int, facts: Row) -> Iterator[Row]:
    """A row per pair, from the timings of :func:`saga_fast.profile.figures.time_pairs`.

    Args:
        seconds: way -> (repeats,) seconds, each for ``images`` images.
        pairs: the rows.
        images: images per call.
        facts: more columns of every row.
    """
    for pair in pairs:
        row = compare(pair.name, seconds[pair.way], seconds[pair.baseline], against=pair.against, images=images)
        yield row | facts | ({} if pair.target is None else {"target": pair.target})
