"""Runs the study: ``python -m benchmarks.study --out FILE --runs DIR [--stages ...] [--budget-minutes M]``.

A run that has a row is not repeated, and an interrupted run is resumed from its last epoch. No run begins that would
not end within the budget, judged by the longest so far. Retired arms (benchmarks/study/arms.py) keep their rows and
are not run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.scaffold import benchmark_parser, read_rows, record
from benchmarks.study.arms import ARMS, STAGES, TINY, Run, Scale, stages
from benchmarks.study.runs import Study
from saga_fast.errors import SagaError
from saga_fast.profile.figures import Row


def selected(options: argparse.Namespace) -> Iterator[Run]:
    """The runs of the command line, without those of retired arms unless ``--arms`` names them."""
    for run in stages():
        choices = ((run.stage, options.stages), (run.seed, options.seeds), (run.method, options.methods))
        if not all(allowed is None or value in allowed for value, allowed in choices):
            continue
        if run.arm in options.arms if options.arms else not ARMS[run.arm].retired:
            yield run


def new_rows(options: argparse.Namespace, study: Study) -> Iterator[Row]:
    """The rows of the selected runs that have none, within the budget."""
    begin, longest = time.perf_counter(), 0.0
    done = {row["name"] for row in read_rows(options.out)}
    for run in selected(options):
        if run.name in done:
            continue
        start = time.perf_counter()
        if start - begin + longest > 60 * options.budget_minutes:
            print("the budget is spent; the same command continues")
            return
        yield study.row(run)
        longest = max(longest, time.perf_counter() - start)


def main(words: Sequence[str] | None = None) -> None:
    parser = benchmark_parser(__doc__, out="JSON file for the rows; those in it are kept")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the images and the runs")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--arms", nargs="+", metavar="ARM", choices=list(ARMS), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="only these")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="seconds: shows that the study runs")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    study = Study(options.runs, TINY if options.tiny else Scale(), options.threads)
    try:
        record(options.out, new_rows(options, study), kept=read_rows(options.out))
    except SagaError as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


if __name__ == "__main__":
    main()
