"""A run's share of a busy machine: training beside processes that only loop, and beside other torch processes.

``saga-fast profile train`` runs demo.yaml's network alone and beside k busy processes. A fair share is the rate alone
over k + 1; ``ratio`` is the rate over it. Arms: ``adaptive``, as the commands do (:mod:`saga_fast.runtime.spinning`);
``sleeping``, with ``OMP_WAIT_POLICY=PASSIVE``; and ``spinning``, GNU OpenMP's default. The rounds take turns, and each
row is the median of its rounds.

Run it on an idle machine as ``PYTHONPATH=. python benchmarks/bench_busy.py --out FILE``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.scaffold import add_data, benchmark_parser, record
from saga_fast.demo.data import make_demo_data
from saga_fast.loaders.config import DemoDataConfig
from saga_fast.profile.figures import Row

ARMS = {"adaptive": {}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
"""Environment of each arm; 300,000 is the count of libgomp where no wait policy is set."""
BUSY = {
    "loop": "while True: pass",
    "torch": "import torch\na = torch.randn(1, 64, 56, 56)\nc = torch.nn.Conv2d(64, 64, 3)\nwhile True: c(a)",
}
CONFIG = Path(__file__).parents[1] / "saga_fast" / "configs" / "demo.yaml"


@contextmanager
def busy(kind: str, count: int) -> Iterator[None]:
    """Keep ``count`` processes of a kind busy for the length of the block."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", BUSY[kind]])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def rate(data: Path, arm: str, seconds: float) -> float:
    """Images per second of training, by ``saga-fast profile train`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "saga_fast", "profile", "train", "--config", str(CONFIG)]
        command += ["--seconds", str(seconds), "--json", str(out), "--set", f"data.train={data / 'train'}"]
        environment = {**os.environ, **ARMS[arm]}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        rows: list[Row] = json.loads(out.read_text())["rows"]
    return float(next(row["images_per_second"] for row in rows if row["name"] == "train"))


def measure(data: Path, *, counts: list[int], rounds: int, seconds: float) -> Iterator[Row]:
    """A row per arm, kind and number of busy processes."""
    places = [("none", 0), *((kind, count) for kind in BUSY for count in counts)]
    rates: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(rounds):
        for kind, count in places:
            with busy(kind, count) if count else ExitStack():
                for arm in ARMS:
                    rates.setdefault((arm, kind, count), []).append(rate(data, arm, seconds))
    for (arm, kind, count), values in rates.items():
        alone = statistics.median(rates[arm, "none", 0])
        fair = alone / (count + 1)
        value = statistics.median(values)
        yield {
            "name": f"{arm}, alone" if count == 0 else f"{arm}, beside {count} {kind} processes",
            "images_per_second": value,
            "limit": fair if count else statistics.median(rates["spinning", "none", 0]),
            "against": "a fair share of the rate alone" if count else "spinning, alone",
            "ratio": value / (fair if count else statistics.median(rates["spinning", "none", 0])),
            "rounds": values,
            "cores": len(os.sched_getaffinity(0)),
        }


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_data(parser)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4], help="busy processes")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every measurement")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments = parser.parse_args()
    data = arguments.data / "busy"
    make_demo_data(data, DemoDataConfig(num_train=2000, num_val=12, side=72, object_side=(0.4, 0.7)))
    record(
        arguments.out,
        measure(data, counts=arguments.counts, rounds=arguments.rounds, seconds=arguments.seconds),
    )


if __name__ == "__main__":
    main()
