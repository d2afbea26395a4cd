"""``make torture``: faults by the thousand, a table of what came of them, and ``benchmarks/results/torture.json``.

A fault is survived when what comes after it is as it should be: no crash, no hang, a documented refusal, and the files
and the end of a run as they are without it. Data lost, or read as something else, makes a row an error.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.torture.experiment import undisturbed
from benchmarks.torture.full_disk import can_mount, fill_train, limit_pack, limit_train
from benchmarks.torture.fuzz import fuzz
from benchmarks.torture.kills import kill_build_att, kill_pack, kill_train
from saga_fast.profile.figures import Row, write

CASES = {
    "decode": 100_000,
    "folder": 500,  # of 50 images
    "table": 20_000,
    "checkpoint": 20_000,
    "config": 10_000,
    "shards": 10_000,
    "beton": 5_000,
}


def faults(folder: Path, *, scale: float, seed: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Name and fault, in turn."""

    def many(number: int) -> int:
        return max(1, round(scale * number))

    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    for target, cases in CASES.items():
        yield f"fuzz {target}", partial(fuzz, target, place(f"fuzz-{target}"), cases=many(cases), seed=seed)
    experiment = undisturbed(place("experiment"))
    yield "train killed", partial(kill_train, experiment, place("kills"), kills=many(40), seed=seed)
    yield "build-att killed", partial(kill_build_att, experiment, place("att"), kills=many(40), seed=seed)
    yield "pack killed", partial(kill_pack, place("pack"), kills=many(40), seed=seed)
    yield "file size limit, train", partial(limit_train, experiment, place("limit"), faults=many(15), seed=seed)
    yield "file size limit, pack", partial(limit_pack, place("limit-pack"), faults=many(15), seed=seed)
    if can_mount():
        yield "disk full, train", partial(fill_train, experiment, place("disk"), faults=many(12), seed=seed)


def main() -> int:
    """Run them all; 1 if one of them was not survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/torture.json"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of faults; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows: list[Row] = []
    print(f"{'':24} {'faults':>8} {'survived':>8} {'data lost':>9} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, fault in faults(Path(folder), scale=options.scale, seed=options.seed):
            begin = time.perf_counter()
            try:
                row = fault()
            except (AssertionError, TimeoutError) as error:
                row = {"name": name, "error": str(error)}
            seconds = time.perf_counter() - begin
            rows.append({**row, "seconds": round(seconds, 1)})
            if "error" in row:
                print(f"{name:24} failed: {row['error']}", flush=True)
            else:
                print(
                    f"{name:24} {row['faults']:8} {row['survived']:8} {row['data_lost']:9} {seconds:8.1f}", flush=True
                )
    write(options.out, rows)
    failed = [row["name"] for row in rows if "error" in row]
    print(f"{sum(row.get('faults', 0) for row in rows)} faults, {len(failed)} kinds not survived: {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
