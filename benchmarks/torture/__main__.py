"""``make torture``: faults by the thousand, and a row per kind of fault.

A fault is survived if there is no crash, no hang, a documented refusal, and files and the end of a run that equal those
without it. Data that is lost, or read as something else, makes a row an error.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.scaffold import benchmark_parser, record
from benchmarks.torture.experiment import undisturbed
from benchmarks.torture.full_disk import can_mount, fill_train, limit_pack, limit_train
from benchmarks.torture.fuzz import fuzz
from benchmarks.torture.kills import kill_build_att, kill_pack, kill_train
from benchmarks.torture.races import change_checkpoint, exhaust, run_twice
from saga_fast.profile.figures import Row

CASES = {
    "decode": 100_000,
    "folder": 500,  # of 50 images
    "table": 20_000,
    "checkpoint": 20_000,
    "config": 10_000,
    "shards": 10_000,
    "beton": 5_000,
    "encoder": 2_000,
}


def faults(folder: Path, *, scale: float, seed: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The name of each kind of fault, and the function that injects it."""

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
    yield "checkpoint changed", partial(change_checkpoint, experiment, place("race"), faults=many(40), seed=seed)
    yield "two runs in one folder", partial(run_twice, experiment, place("twice"), faults=many(20), seed=seed)
    yield "too few resources", partial(exhaust, experiment, place("exhausted"), faults=many(100), seed=seed)
    if can_mount():
        yield "disk full, train", partial(fill_train, experiment, place("disk"), faults=many(12), seed=seed)


def rows(folder: Path, *, scale: float, seed: int) -> Iterator[Row]:
    """The rows; a kind of fault that was not survived is a row with an error."""
    for name, inject in faults(folder, scale=scale, seed=seed):
        begin = time.perf_counter()
        try:
            row = inject()
        except (AssertionError, TimeoutError) as error:
            row = {"name": name, "error": str(error) or traceback.format_exc().splitlines()[-2].strip()}
        yield row | {"seconds": round(time.perf_counter() - begin, 1)}


def show(row: Row) -> str:
    """A row's line."""
    if "error" in row:
        return f"{row['name']:24} failed: {row['error']}"
    return f"{row['name']:24} {row['faults']:8} {row['survived']:8} {row['data_lost']:9} {row['seconds']:8.1f}"


def main() -> int:
    """Inject all faults; 1 if one kind was not survived."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of faults; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'':24} {'faults':>8} {'survived':>8} {'data lost':>9} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as folder:
        written = record(options.out, rows(Path(folder), scale=options.scale, seed=options.seed), show=show)
    failed = [row["name"] for row in written if "error" in row]
    print(f"{sum(row.get('faults', 0) for row in written)} faults, {len(failed)} kinds not survived: {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
