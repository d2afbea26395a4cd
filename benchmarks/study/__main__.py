"""Runs the study: ``python -m benchmarks.study --out FILE --runs DIR [--stages ...] [--budget-minutes M]``.

A row is written as each run ends; a run that has a row is not repeated, and one that was interrupted goes on from its
last epoch. No run begins that would not end within the budget, judged by the longest so far.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.study.arms import STAGES, TINY, Scale, stages
from benchmarks.study.runs import Study
from saga_fast.profile.figures import Row, line, write


def rows_of(path: Path) -> list[Row]:
    """The rows that are there already."""
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the rows; those in it are kept")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the images and the runs")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="these alone")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="these alone")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it runs")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    study = Study(arguments.runs, TINY if arguments.tiny else Scale(), arguments.threads)
    begin, longest = time.perf_counter(), 0.0
    for run in stages():
        wanted = ((run.stage, arguments.stages), (run.arm, arguments.arms), (run.seed, arguments.seeds))
        if not all(chosen is None or value in chosen for value, chosen in (*wanted, (run.method, arguments.methods))):
            continue
        rows = rows_of(arguments.out)
        if run.name in {row["name"] for row in rows}:
            continue
        start = time.perf_counter()
        if start - begin + longest > 60 * arguments.budget_minutes:
            print("the budget is spent; the same command goes on")
            return
        row = study.row(run)
        longest = max(longest, time.perf_counter() - start)
        write(arguments.out, [*rows_of(arguments.out), row])
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
