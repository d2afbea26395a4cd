"""What a finished demo printed: kNN of its four arms at their last evaluation, and their time.

Run it as ``PYTHONPATH=. python benchmarks/demo_arms.py --demo runs/demo --out FILE`` after ``make demo``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.scaffold import benchmark_parser, record
from saga_fast.profile.figures import Row
from saga_fast.runtime.metrics import read_metrics

ARMS = ("plain", "finetune", "saga", "saga_plus")


def arm_rows(demo: Path) -> Iterator[Row]:
    """A row per arm; the ratio is the last kNN (backbone, k 20) over fine-tuning's."""
    rows = {arm: read_metrics(demo / arm) for arm in ARMS}
    backbone = ("knn", "backbone", 20)
    knn = {
        arm: [row["top1"] for row in rows[arm] if (row["kind"], row.get("layer"), row.get("k")) == backbone]
        for arm in ARMS
    }
    for arm in ARMS:
        renewals = [row for row in rows[arm] if row["kind"] == "renewal"]
        yield {
            "name": arm,
            "accuracy": knn[arm][-1],
            "limit": knn["finetune"][-1],
            "against": "fine-tuning",
            "ratio": knn[arm][-1] / knn["finetune"][-1],
            "corloc": renewals[-1]["corloc"] if renewals else None,
            "seconds": sum(row["seconds"] for row in rows[arm] if row["kind"] in ("epoch", "renewal")),
        }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="the demo's folder")
    options = parser.parse_args()
    record(options.out, arm_rows(options.demo))


if __name__ == "__main__":
    main()
