"""What an incremental renewal of D^att loses for the time it saves.

Every checkpoint that a run has kept (``checkpoint.keep_every``) is taken for a renewal. Its whole table is computed,
and so is the one that each way to renew would have left: rows of the images that ``images_to_renew`` names are new,
the others are those of the table before. ``ratio`` is the mean IoU of such a table's boxes with the whole table's, over
renewals after the first two; ``computed`` is the share of the images that were looked at. ``once`` never renews, and
``random`` draws the fraction afresh each time: what a way has to beat.

Of a run whose ``attention.renew`` is not ``all``, streaming say, the tables that it has made itself are compared in the
same way, each with the whole table of the checkpoint of its epoch (``as trained``).

Run it as ``PYTHONPATH=. python benchmarks/bench_incremental.py --run RUN --out FILE``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saga_fast.attention import box_iou, build_box_table
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.demo_data import read_true_boxes
from saga_fast.errors import SagaError
from saga_fast.incremental import images_to_renew
from saga_fast.loaders import BoxTable, Source, WholePlan, open_loader, open_source
from saga_fast.profile.figures import Row, line, write
from saga_fast.train.config import TrainConfig
from saga_fast.train.metrics import read_metrics

Int64 = npt.NDArray[np.int64]
Way = Callable[[list[BoxTable], int], Int64]
"""The last tables and the number of the renewal -> the images to look at."""


def ways(count: int, fractions: list[float]) -> dict[str, Way]:
    """Name -> way."""

    def changed(tables: list[BoxTable], renewal: int) -> Int64:
        return images_to_renew("changed", tables[-1], _before(tables), fraction=1.0, renewal=renewal, seed=0)

    def fraction(share: float, tables: list[BoxTable], renewal: int) -> Int64:
        return images_to_renew("fraction", tables[-1], _before(tables), fraction=share, renewal=renewal, seed=0)

    def once(_: list[BoxTable], __: int) -> Int64:
        return np.empty(0, np.int64)

    def drawn(share: float, _: list[BoxTable], renewal: int) -> Int64:
        return np.sort(np.random.default_rng(renewal).permutation(count)[: round(share * count)])

    found: dict[str, Way] = {"changed": changed, "once": once}
    for share in fractions:
        found[f"fraction {share:g}"] = partial(fraction, share)
        found[f"random {share:g}"] = partial(drawn, share)
    return found


def _before(tables: list[BoxTable]) -> BoxTable | None:
    return tables[-2] if len(tables) > 1 else None


def whole_tables(run: Path) -> tuple[TrainConfig, Source, dict[str, BoxTable]]:
    """The run's config, its data set, and the table of every checkpoint that it has kept: epoch_NNNN -> table."""
    paths = sorted(run.glob("epoch_*.pt"))
    if len(paths) < 4:
        raise SagaError(f"{run} holds {len(paths)} checkpoints epoch_NNNN.pt, at least 4 are needed: set keep_every")
    config = checkpoint_config(read_checkpoint(paths[0]), paths[0])
    source = open_source(config.data.engine, config.data.train, classes=config.data.classes)
    plan = WholePlan(size=config.attention_size)
    loader = open_loader(config.data.engine, source, plan, batch_size=256, threads=config.data.threads)
    tables = {path.stem: build_box_table(load_model(path), loader, **config.looking, progress=True) for path in paths}
    return config, source, tables


def as_trained(
    config: TrainConfig, run: Path, tables: Mapping[str, BoxTable], true: npt.NDArray[np.float32] | None
) -> list[Row]:
    """A row of the tables that the run has made, and one of the whole tables of the same checkpoints."""
    epochs = [epoch for epoch in tables if (run / "att" / f"{epoch}.safetensors").exists()]
    own = [BoxTable.open(run / "att" / f"{epoch}.safetensors") for epoch in epochs]
    renewals = [row for row in read_metrics(run) if row["kind"] == "renewal"]
    looked_at = {Path(row["table"]).stem: row["computed"] / len(own[0]) for row in renewals}
    assert config.attention is not None
    name = f"as trained, {config.attention.renew}"
    whole = [tables[epoch] for epoch in epochs]
    return [
        _row(name, own, whole, [looked_at[epoch] for epoch in epochs], true, first=0) | {"epochs": epochs},
        _row("whole, at these epochs", whole, whole, [1.0] * len(whole), true, first=0) | {"epochs": epochs},
    ]


def incremental(tables: list[BoxTable], true: npt.NDArray[np.float32] | None, fractions: list[float]) -> Iterator[Row]:
    """A row per way, and one of the whole tables."""
    alike = [box_iou(after.boxes, before.boxes).mean() for before, after in pairwise(tables)]
    row = _row("all", tables, tables, [1.0] * len(tables), true)
    yield row | {"iou_with_the_renewal_before": float(np.mean(alike[1:]))}
    for name, way in ways(len(tables[0]), fractions).items():
        own, computed = [tables[0]], [1.0]
        for renewal in range(1, len(tables)):
            index = way(own, renewal)
            boxes = own[-1].boxes.copy()
            boxes[index] = tables[renewal].boxes[index]
            own.append(replace(tables[renewal], boxes=boxes))
            computed.append(len(index) / len(boxes))
        yield _row(name, own, tables, computed, true)


def _row(
    name: str,
    own: list[BoxTable],
    tables: list[BoxTable],
    computed: list[float],
    true: npt.NDArray[np.float32] | None,
    first: int = 2,
) -> Row:
    later = slice(first, None)
    agreement = [float(box_iou(one.boxes, other.boxes).mean()) for one, other in zip(own, tables, strict=True)]
    row: Row = {
        "name": name,
        "accuracy": float(np.mean(agreement[later])),
        "limit": 1.0,
        "against": "the whole table's boxes",
        "ratio": float(np.mean(agreement[later])),
        "computed": float(np.mean(computed[later])),
        "agreement": agreement,
    }
    if true is not None:
        overlaps = [box_iou(table.boxes, true) for table in own[later]]
        row |= {"iou": float(np.mean(overlaps)), "corloc": float(np.mean([each >= 0.5 for each in overlaps]))}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with checkpoints epoch_NNNN.pt")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    arguments = parser.parse_args()
    config, source, tables = whole_tables(arguments.run)
    boxes = source.root / "boxes.json"
    true = read_true_boxes(source.root, source.paths) if boxes.exists() else None
    rows: list[Row] = []
    if config.attention is not None and config.attention.renew != "all":
        rows += as_trained(config, arguments.run, tables, true)
    rows += incremental(list(tables.values()), true, arguments.fractions)
    for row in rows:
        print(line(row) + f", {100 * row['computed']:.0f} % computed")
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
