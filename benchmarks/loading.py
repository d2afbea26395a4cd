"""Sizes, crops and boxes of the loaders' benchmarks, and decoding alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.images import make_images
from benchmarks.scaffold import add_data, add_threads, benchmark_parser, use_cores
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, LoaderOptions, Source
from saga_fast.profile.measure import decoding

SCALE, RATIO = (0.2, 1.0), (3.0 / 4.0, 4.0 / 3.0)
"""Of MoCo's RandomResizedCrop."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class LoadingBench:
    """The sizes of a loader's benchmark.

    Attributes:
        out: the JSON file for the rows.
        root: the folder of images.
        size: side of the views, pixels.
        threads: cores of this process.
        repeats: rounds, in each of which every way is timed once.
        epochs: epochs over which resident memory is followed.
        rows: rows of the box table that is swapped.
    """

    out: Path
    root: Path
    size: int
    threads: int
    batch_size: int
    repeats: int
    epochs: int
    rows: int

    @property
    def options(self) -> LoaderOptions:
        """The options of a training loader."""
        return LoaderOptions(batch_size=self.batch_size, shuffle=True, seed=SEED, threads=self.threads)

    def crops(self, table: BoxTable | None = None, *, seed: int = SEED) -> CropPlan:
        """Two random crops per image, of the table's boxes if there is one."""
        return CropPlan(size=self.size, seed=seed, scale=SCALE, ratio=RATIO, table=table)


def loading_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a loader's benchmark."""
    parser = benchmark_parser(description)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--width", type=int, default=500, help="of the stored images, 3/4 as high; default: 500")
    parser.add_argument("--size", type=int, default=224, help="side of the views; default: 224")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="over which resident memory is followed; default: 30")
    parser.add_argument("--rows", type=int, default=1_281_167, help="of the swapped box table; default: ImageNet's")
    add_threads(parser, default=2)
    add_data(parser)
    return parser


def read_loading_bench(description: str | None) -> LoadingBench:
    """See :func:`loading_parser` and :func:`read_loading_options`."""
    return read_loading_options(loading_parser(description).parse_args())


def read_loading_options(options: argparse.Namespace) -> LoadingBench:
    """The sizes that the command line names; the process is restricted to its cores, and the images are made."""
    use_cores(options.threads)
    return LoadingBench(
        out=options.out,
        root=make_images(options.data, options.images, width=options.width, height=options.width * 3 // 4),
        size=options.size,
        threads=options.threads,
        batch_size=options.batch_size,
        repeats=options.repeats,
        epochs=options.epochs,
        rows=options.rows,
    )


def half_side_boxes(count: int) -> BoxTable:
    """A table of boxes of half the image's side, at random places."""
    table = BoxTable.whole(count)
    table.boxes[:, :2] = np.random.default_rng(SEED).random((count, 2)) / 2
    table.boxes[:, 2:] = 0.5
    table.found[:] = True
    return table


def consume(batches: Iterable[object]) -> None:
    """Draw every batch."""
    for _ in batches:
        pass


def decode_alone(source: Source, bench: LoadingBench) -> None:
    """Read and decode every image and drop its pixels: the limit of any loader that decodes on the CPU."""
    consume(decoding(source, threads=bench.threads, batch_size=bench.batch_size)())


class InMemory(ImageFolder):
    """A folder of images whose files are read once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._contents = [super(InMemory, self).read(index) for index in range(len(self))]

    def read(self, index: int) -> bytes:
        """The stored bytes of an image."""
        return self._contents[index]
