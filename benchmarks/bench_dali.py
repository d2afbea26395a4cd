"""The DALI engine beside the two-view pipeline that DALI's users write, beside decoding alone, and over many epochs.

Every way visits the same JPEG files once per round, on the same cores (the process binds itself to as many as there are
threads), and the ways take turns, so a ratio compares neighbours in time. One way is there twice: how far its two rows
differ is the machine's noise. Files are in the page cache after the warm-up round. All on the CPU: a GPU's figures are
another benchmark's.

Run it as ``PYTHONPATH=. python benchmarks/bench_dali.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from benchmarks.loading import RATIO, SCALE, SEED, consume, decode_files, half_side_boxes, read_arguments
from benchmarks.swaps import memory_over_epochs, table_swap
from saga_fast.loaders import CropPlan, ImageFolder, Loader, Plan, WholePlan, open_loader
from saga_fast.profile.figures import Row, Ways, compare, line, time_pairs, write

DEPTH = 2
"""Batches under way in a pipeline of DALI's own, which is its default."""


class Stock:
    """A pipeline of DALI's own operators over a folder of images, as its documentation composes one.

    Args:
        views: random resized crops of each image, each with a decode of its own; 0 decodes whole images.
    """

    def __init__(self, root: Path, *, views: int, size: int, threads: int, batch_size: int) -> None:
        sizes = {"batch_size": batch_size, "num_threads": threads, "prefetch_queue_depth": DEPTH}
        self.pipeline: Any = Pipeline(**sizes, device_id=None, seed=SEED)
        with self.pipeline:
            encoded, _ = fn.readers.file(name="files", file_root=str(root), random_shuffle=True)
            rgb = types.DALIImageType.RGB
            if views:
                crops = [
                    fn.decoders.image_random_crop(
                        encoded, output_type=rgb, random_area=list(SCALE), random_aspect_ratio=list(RATIO)
                    )
                    for _ in range(views)
                ]
                self.pipeline.set_outputs(*(fn.resize(crop, size=[size, size], antialias=True) for crop in crops))
            else:
                self.pipeline.set_outputs(fn.decoders.image(encoded, output_type=rgb))
        self.batches = -(-self.pipeline.epoch_size("files") // batch_size)
        self.pipeline.schedule_run()  # the first run starts DEPTH of them
        self._take(DEPTH)

    def epoch(self) -> None:
        """One epoch's batches, the last one filled up, drawn and dropped.

        None is under way when it ends, which the next way would pay for: up to a quarter, with DALI's ``run()``.
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


def bench(source: ImageFolder, *, size: int, threads: int, batch_size: int, repeats: int, epochs: int) -> list[Row]:
    """All rows; ``against`` in each names the way that ``limit`` and ``ratio`` refer to."""
    crops = CropPlan(size=size, seed=SEED, scale=SCALE, ratio=RATIO)
    boxes = CropPlan(size=size, seed=SEED, scale=SCALE, ratio=RATIO, table=half_side_boxes(len(source)))

    def engine(plan: Plan, name: str = "dali", *, shuffle: bool = True) -> Loader:
        return open_loader(name, source, plan, batch_size=batch_size, shuffle=shuffle, seed=SEED, threads=threads)

    memory = memory_over_epochs(engine(boxes), "dali", epochs=epochs)  # before the other ways take theirs
    stock = partial(Stock, source.root, size=size, threads=threads, batch_size=batch_size)
    whole = stock(views=0).epoch
    ways: Ways = {
        "decode": whole,
        "two views": partial(consume, engine(crops)),
        "stock": stock(views=2).epoch,
        "boxes": partial(consume, engine(boxes)),
        "decode again": whole,
        "folder": partial(consume, engine(crops, "folder")),
        "folder boxes": partial(consume, engine(boxes, "folder")),
        "whole view": partial(consume, engine(WholePlan(size=size), shuffle=False)),
        "our decode": partial(decode_files, [source.root / path for path in source.paths], threads),
    }
    seconds = time_pairs(ways, repeats=repeats)
    facts: dict[str, Any] = {"threads": threads, "rounds": repeats}
    rows = [
        compare(name, seconds[way], seconds[other], against=against, images=len(source), **facts, **more)
        for name, way, other, against, more in (
            ("dali, two views", "two views", "stock", "two image_random_crop and resize", {"target": 1.4}),
            ("dali, two views", "two views", "decode", "DALI's decoders.image alone", {}),
            ("dali, two views", "two views", "our decode", "read and decode alone, simplejpeg", {}),
            ("dali, two views", "two views", "folder", "folder, two views", {}),
            ("dali, two views of attention boxes", "boxes", "two views", "dali, two views", {"target": 1.0}),
            ("dali, two views of attention boxes", "boxes", "stock", "two image_random_crop and resize", {}),
            ("dali, two views of attention boxes", "boxes", "decode", "DALI's decoders.image alone", {}),
            ("dali, two views of attention boxes", "boxes", "folder boxes", "folder, two views of boxes", {}),
            ("dali, one whole view", "whole view", "decode", "DALI's decoders.image alone", {}),
            ("noise: DALI's decoders.image, again", "decode again", "decode", "DALI's decoders.image alone", {}),
        )
    ]
    return [*rows, memory]


def main() -> None:
    arguments, root = read_arguments(__doc__)
    sizes = {"size": arguments.size, "batch_size": arguments.batch_size, "repeats": arguments.repeats}
    rows = bench(ImageFolder(root), threads=arguments.threads, epochs=arguments.epochs, **sizes)
    rows += table_swap("dali", root, count=arguments.rows, **sizes)
    write(arguments.out, rows)
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
