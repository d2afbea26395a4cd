"""The agreement with a whole renewal of D^att that incremental renewals lose for the time they save.

Each checkpoint that a run has kept (``checkpoint.keep_every``) stands for a renewal. Its whole table is computed, and
so is the one that each way to renew would have left: the images that the way computes have new boxes, the remaining
ones those of the table before. ``ratio`` is the mean IoU of such a table's boxes with the whole table's, over the
renewals after the first two; ``computed`` is the fraction of the images that were computed.

The ways are ``all``, ``changed`` (:func:`saga_fast.attention.incremental.changed_images`), ``once``, which never
renews, and ``random``, a fraction drawn for each renewal: the baseline of any choice.

Run it as ``PYTHONPATH=. python benchmarks/bench_incremental.py --run RUN --out FILE``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.scaffold import benchmark_parser, record
from saga_fast.attention import build_box_table
from saga_fast.attention.incremental import changed_images
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.demo.data import demo_boxes
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, Source, WholePlan, open_loader, open_source
from saga_fast.loaders.boxes import box_iou
from saga_fast.loaders.true_boxes import true_boxes_file
from saga_fast.profile.figures import Row, line

Int64 = npt.NDArray[np.int64]
Way = Callable[[list[BoxTable], int], Int64]
"""The tables so far and the number of the renewal -> the images to compute."""


def changed(tables: list[BoxTable], renewal: int) -> Int64:
    """``attention.renew=changed``."""
    return changed_images(tables[-1], tables[-2] if len(tables) > 1 else None, renewal=renewal)


def once(_: list[BoxTable], __: int) -> Int64:
    """No image: the first table stays."""
    return np.empty(0, np.int64)


def drawn(share: float, tables: list[BoxTable], renewal: int) -> Int64:
    """A random fraction of the images, another one for each renewal."""
    count = len(tables[0])
    return np.sort(np.random.default_rng(renewal).permutation(count)[: round(share * count)])


def whole_tables(run: Path) -> tuple[Source, list[BoxTable]]:
    """The run's data set, and the table of each checkpoint that it has kept.

    Raises:
        SagaError: fewer than four checkpoints.
    """
    paths = sorted(run.glob("epoch_*.pt"))
    if len(paths) < 4:
        raise SagaError(f"{run} holds {len(paths)} checkpoints epoch_NNNN.pt, at least 4 are needed: set keep_every")
    config = checkpoint_config(read_checkpoint(paths[0]), paths[0])
    source = open_source(config.data.engine, config.data.train, classes=config.data.classes)
    options = replace(config.loader_options("cpu"), batch_size=256)
    loader = open_loader(config.data.engine, source, WholePlan(size=config.attention_pass.size), options)
    tables = [build_box_table(load_model(path), loader, config.attention_pass, progress=True) for path in paths]
    return source, tables


def incremental(tables: list[BoxTable], true: npt.NDArray[np.float32] | None, shares: Sequence[float]) -> Iterator[Row]:
    """A row of the whole tables, and one per way."""
    agreement = [box_iou(after.boxes, before.boxes).mean() for before, after in pairwise(tables)]
    row = table_row("all", tables, tables, [1.0] * len(tables), true)
    yield row | {"iou_with_the_renewal_before": float(np.mean(agreement[1:]))}
    ways: dict[str, Way] = {"changed": changed, "once": once}
    ways |= {f"random {share:g}": partial(drawn, share) for share in shares}
    for name, way in ways.items():
        left, computed = [tables[0]], [1.0]
        for renewal in range(1, len(tables)):
            index = way(left, renewal)
            boxes = left[-1].boxes.copy()
            boxes[index] = tables[renewal].boxes[index]
            left.append(replace(tables[renewal], boxes=boxes))
            computed.append(len(index) / len(boxes))
        yield table_row(name, left, tables, computed, true)


def table_row(
    name: str,
    left: list[BoxTable],
    tables: list[BoxTable],
    computed: list[float],
    true: npt.NDArray[np.float32] | None,
) -> Row:
    """The row of a way, which left these tables; without its first two renewals, which compute all images."""
    later = slice(2, None)
    agreement = [float(box_iou(a.boxes, b.boxes).mean()) for a, b in zip(left, tables, strict=True)]
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
        overlaps = [box_iou(table.boxes, true) for table in left[later]]
        row |= {"iou": float(np.mean(overlaps)), "corloc": float(np.mean([each >= 0.5 for each in overlaps]))}
    return row


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder with checkpoints epoch_NNNN.pt")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="of 'random'")
    options = parser.parse_args()
    source, tables = whole_tables(options.run)
    known = true_boxes_file(source.root).is_file()
    true = demo_boxes(source.root, source.paths) if known else None
    rows = incremental(tables, true, options.shares)
    record(options.out, rows, show=lambda row: f"{line(row)}, {100 * row['computed']:.0f} % computed")


if __name__ == "__main__":
    main()
