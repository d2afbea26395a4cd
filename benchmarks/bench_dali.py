"""The DALI engine against the two-view pipeline that DALI's users write, against decoding alone, and over many epochs.

All ways visit the same JPEG files once per round, on the same cores (the process restricts itself to ``--threads``),
and take turns, so a ratio compares neighbours in time. One way is timed twice: the difference of its two rows is the
machine's noise. Files are in the page cache after the warm-up round. Everything runs on the CPU.

Run it as ``PYTHONPATH=. python benchmarks/bench_dali.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from benchmarks.loading import (
    RATIO,
    SCALE,
    SEED,
    LoadingBench,
    consume,
    decode_alone,
    half_side_boxes,
    read_loading_bench,
)
from benchmarks.scaffold import Pair, compare_pairs, record
from benchmarks.swaps import memory_over_epochs, table_swap
from saga_fast.loaders import ImageFolder, Loader, Plan, WholePlan, open_loader
from saga_fast.profile.figures import Row, Ways, time_pairs

DEPTH = 2
"""Prefetched batches of DALI's own pipelines: its default."""
DECODE, STOCK, TWO_VIEWS = "DALI's decoders.image alone", "two image_random_crop and resize", "dali, two views"
BOXES = "dali, two views of attention boxes"
PAIRS = (
    Pair(TWO_VIEWS, "two views", "stock", STOCK, 1.4),
    Pair(TWO_VIEWS, "two views", "decode", DECODE),
    Pair(TWO_VIEWS, "two views", "our decode", "read and decode alone, simplejpeg"),
    Pair(TWO_VIEWS, "two views", "folder", "folder, two views"),
    Pair(BOXES, "boxes", "two views", TWO_VIEWS, 1.0),
    Pair(BOXES, "boxes", "stock", STOCK),
    Pair(BOXES, "boxes", "decode", DECODE),
    Pair(BOXES, "boxes", "folder boxes", "folder, two views of boxes"),
    Pair("dali, one whole view", "whole view", "decode", DECODE),
    Pair("noise: DALI's decoders.image, again", "decode again", "decode", DECODE),
)


class Stock:
    """A pipeline of DALI's own operators over a folder of images, as its documentation composes one.

    Args:
        bench: the folder and the sizes.
        views: random resized crops of each image, each with a decode of its own; 0: whole images are decoded.
    """

    def __init__(self, bench: LoadingBench, *, views: int) -> None:
        self.pipeline: Any = Pipeline(
            batch_size=bench.batch_size,
            num_threads=bench.threads,
            prefetch_queue_depth=DEPTH,
            device_id=None,
            seed=SEED,
        )
        with self.pipeline:
            encoded, _ = fn.readers.file(name="files", file_root=str(bench.root), random_shuffle=True)
            rgb = types.DALIImageType.RGB
            if views:
                crops = [
                    fn.decoders.image_random_crop(
                        encoded, output_type=rgb, random_area=list(SCALE), random_aspect_ratio=list(RATIO)
                    )
                    for _ in range(views)
                ]
                sides = [bench.size, bench.size]
                self.pipeline.set_outputs(*(fn.resize(crop, size=sides, antialias=True) for crop in crops))
            else:
                self.pipeline.set_outputs(fn.decoders.image(encoded, output_type=rgb))
        self.batches = -(-self.pipeline.epoch_size("files") // bench.batch_size)
        self.pipeline.schedule_run()  # the first run starts DEPTH of them
        self._take(DEPTH)

    def epoch(self) -> None:
        """Draw and drop one epoch's batches, the last one filled up.

        No batch is in flight at the end, which the next way would pay for: up to a quarter, with DALI's ``run()``.
        """
        for batch in range(self.batches):
            self.pipeline.schedule_run()
            if batch >= DEPTH - 1:
                self._take(1)
        self._take(DEPTH - 1)

    def _take(self, count: int) -> None:
        for _ in range(count):
            self.pipeline.share_outputs()
            self.pipeline.release_outputs()


def time_loaders(source: ImageFolder, bench: LoadingBench) -> Iterator[Row]:
    """The rows; ``against`` names the way that ``limit`` and ``ratio`` refer to."""

    def engine(plan: Plan, name: str = "dali", *, shuffle: bool = True) -> Loader:
        return open_loader(name, source, plan, bench.options, shuffle=shuffle)

    crops, boxes = bench.crops(), bench.crops(half_side_boxes(len(source)))
    whole = Stock(bench, views=0).epoch
    ways: Ways = {
        "decode": whole,
        "two views": partial(consume, engine(crops)),
        "stock": Stock(bench, views=2).epoch,
        "boxes": partial(consume, engine(boxes)),
        "decode again": whole,
        "folder": partial(consume, engine(crops, "folder")),
        "folder boxes": partial(consume, engine(boxes, "folder")),
        "whole view": partial(consume, engine(WholePlan(size=bench.size), shuffle=False)),
        "our decode": partial(decode_alone, source, bench),
    }
    seconds = time_pairs(ways, repeats=bench.repeats)
    facts: Row = {"threads": bench.threads, "rounds": bench.repeats}
    yield from compare_pairs(seconds, PAIRS, images=len(source), facts=facts)


def rows(bench: LoadingBench) -> Iterator[Row]:
    """All rows."""
    yield memory_over_epochs("dali", bench.root, bench)  # first, before the other ways allocate theirs
    yield from time_loaders(ImageFolder(bench.root), bench)
    yield from table_swap("dali", bench)


def main() -> None:
    bench = read_loading_bench(__doc__)
    record(bench.out, rows(bench))


if __name__ == "__main__":
    main()
