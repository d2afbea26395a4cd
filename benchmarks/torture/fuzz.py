"""Fuzzing a target in a separate process; ``python -m benchmarks.torture.fuzz TARGET --cases N`` runs it in this one.

A crash ends the process, a case of more than 60 s ends it with a traceback, and the file FOLDER/case holds the number
of the last case: ``--first`` begins there.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.torture.processes import call
from saga_fast.profile.figures import Row

CASE_SECONDS = 60.0
GROWTH = 64 * 2**20
"""Bytes by which resident memory may grow in the last three quarters of the cases."""


def fuzz(target: str, folder: Path, *, cases: int, seed: int = 0) -> Row:
    """Run ``cases`` cases of a target in a separate process, which writes to ``folder``.

    Raises:
        AssertionError: it crashed, hung, leaked, or raised an undocumented error; with the case's number.
        TimeoutError: it did not end.
    """
    ended = call(partial(_fuzz, target, folder, cases, seed), folder / "log.txt", limit=3600.0)
    if ended.code != 0:
        last = (folder / "case").read_text().strip() if (folder / "case").exists() else "none"
        raise AssertionError(f"{target}, seed {seed}, case {last}: exit {ended.code}\n{ended.text[-3000:]}")
    row: Row = json.loads(ended.text.splitlines()[-1])
    assert row["memory_growth_bytes"] < GROWTH, row
    return row


def _fuzz(target: str, folder: Path, cases: int, seed: int) -> int:
    print(json.dumps(run_cases(target, folder, cases=cases, seed=seed)))
    return 0


def run_cases(target: str, folder: Path, *, cases: int, seed: int = 0, first: int = 0) -> Row:
    """Run the cases from ``first`` on in this process; files are written to ``folder``."""
    from benchmarks.torture.targets import TARGETS

    memory, read, early = psutil.Process().memory_info, 0, 0
    with warnings.catch_warnings(), (folder / "case").open("w") as progress:
        warnings.simplefilter("ignore")  # Pillow warns of damaged files, thousands of times
        case = TARGETS[target](folder)
        try:
            for number in range(first, cases):
                progress.seek(0)
                progress.write(f"{number}\n")
                progress.flush()
                faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
                read += case(np.random.default_rng([seed, number]))
                if number == cases // 4:
                    early = memory().rss
        finally:
            faulthandler.cancel_dump_traceback_later()
    return {
        "name": f"fuzz {target}",
        "faults": cases,
        "survived": cases,
        "data_lost": 0,
        "read": read,
        "refused": cases - read,
        "memory_growth_bytes": memory().rss - early,
    }


def main() -> None:
    """Run cases in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    row = run_cases(options.target, options.folder, cases=options.cases, seed=options.seed, first=options.first)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
