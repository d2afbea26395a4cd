"""The ffcv engine against FFCV's own loader with two RandomResizedCrop decoders, on the same .beton files.

All ways visit the same images once per round, on the same cores (the process restricts itself to ``--threads``), and
take turns, so a ratio compares neighbours in time. One way is timed twice: the difference of its two rows is the
machine's noise. FFCV and the engine crop with the same scale and ratio, but with different random draws.

Run it as ``PYTHONPATH=. python benchmarks/bench_ffcv.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader as StockLoader
from ffcv.loader import OrderOption
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.compiler import Compiler
from ffcv.reader import Reader
from ffcv.transforms import ToTensor

from benchmarks.loading import (
    RATIO,
    SCALE,
    SEED,
    InMemory,
    LoadingBench,
    consume,
    decode_alone,
    half_side_boxes,
    read_loading_bench,
)
from benchmarks.scaffold import Pair, compare_pairs, record
from benchmarks.swaps import memory_over_epochs
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, Loader, Place, Plan, WholePlan, open_loader
from saga_fast.loaders.ffcv.beton import Beton, sidecar_path
from saga_fast.loaders.ffcv.decoder import RAW
from saga_fast.loaders.ffcv.pack import Mode, PackedImages, PackOptions, pack, write_sidecar
from saga_fast.loaders.ffcv.writer import BetonWriter
from saga_fast.profile.figures import Row, Ways, compare, time_pairs

SMALL_PLANES = "ffcv yuv420, two views, longer side 256 px"
STOCK, TWO_VIEWS, RAW_VIEWS = "two stock FFCV decoders", "ffcv jpg, two views", "ffcv raw, two views"
PAIRS = (
    Pair(TWO_VIEWS, "jpg", "stock jpg", STOCK, 1.5),
    Pair("ffcv jpg, two views of attention boxes", "jpg of boxes", "jpg", TWO_VIEWS, 1.0),
    Pair("noise: ffcv jpg, two views, again", "jpg again", "jpg", TWO_VIEWS),
    Pair(TWO_VIEWS, "jpg", "stock jpg, one view", "one stock FFCV decoder"),
    Pair(TWO_VIEWS, "jpg", "decode", "decode alone"),
    Pair(TWO_VIEWS, "jpg", "folder", "folder, two views"),
    Pair("ffcv jpg, crop: gpu without a GPU", "jpg, device", "jpg", TWO_VIEWS),
    Pair("ffcv jpg, one whole view", "whole", "decode", "decode alone"),
    Pair(RAW_VIEWS, "raw", "stock raw", STOCK),
    Pair("ffcv raw, two views of attention boxes", "raw of boxes", "raw", RAW_VIEWS, 1.0),
    Pair(RAW_VIEWS, "raw", "jpg", TWO_VIEWS),
    Pair("ffcv yuv420, two views", "planes", "raw", RAW_VIEWS),
    Pair("ffcv yuv420, two views", "planes", "jpg", TWO_VIEWS),
    Pair(SMALL_PLANES, "small planes", "small raw", "ffcv raw, as large", 0.8),
    Pair(SMALL_PLANES, "small planes", "small jpg", "ffcv jpg, as large", 2.0),
    Pair("noise: ffcv raw, longer side 256 px, again", "small raw again", "small raw", "ffcv raw, as large"),
)
SMALL = 256
"""Longer side of the images of SMALL_PLANES, pixels: ImageNet's in the memory of a machine."""


MODES: tuple[Mode, ...] = ("jpg", "raw", "yuv420")
READ_ONLY = numba.types.Array(numba.uint8, 1, "C", readonly=True)


class FixedOSCache(OSCacheManager):  # type: ignore[misc]
    """FFCV's memory manager without its change of Numba's type objects.

    It sets ``mutable = False`` on the array type that all kernels of the process share: a kernel that was compiled for
    it before is then not found any more (KeyError), which happened with an empty cache of kernels.
    """

    @property
    def state_type(self) -> numba.types.Tuple:
        """The types of the mapped file, and of the records' addresses and sizes."""
        return numba.types.Tuple([READ_ONLY, numba.uint64[::1], numba.uint64[::1]])  # type: ignore[no-untyped-call]

    def compile_reader(self) -> Callable[..., Any]:
        """See FFCV's: the bytes of the record at an address."""

        def read(address: Any, state: Any) -> Any:
            size = state[2][np.searchsorted(state[1], address)]
            return state[0][address : address + size]

        return Compiler.compile(read, READ_ONLY(numba.uint64, self.state_type))  # type: ignore[no-any-return]


def stock_loader(path: Path, bench: LoadingBench, *, views: int) -> StockLoader:
    """FFCV's loader with one of its decoders per view, which is how FFCV's users get several views of an image."""
    sides = (bench.size, bench.size)
    decoders = [RandomResizedCropRGBImageDecoder(sides, SCALE, RATIO) for _ in range(views)]
    further = {
        f"view_{i}": PipelineSpec("image", decoder=decoders[i], transforms=[ToTensor()]) for i in range(1, views)
    }
    with patch("ffcv.loader.loader.OSCacheManager", FixedOSCache):
        return StockLoader(
            str(path),
            batch_size=bench.batch_size,
            num_workers=bench.threads,
            os_cache=True,
            order=OrderOption.RANDOM,
            seed=SEED,
            drop_last=False,
            batches_ahead=2,
            pipelines={"image": [decoders[0], ToTensor()], "label": None, "index": None} | further,
        )


def packed(folder: Path, mode: Mode, threads: int, *, side: int | None = None) -> Path:
    """The images as a .beton file, packed by the first call; ``side``: shrunk to this longer side."""
    path = folder.with_name(f"{folder.name}_{mode}{side or ''}.beton")
    if not path.exists():
        pack(ImageFolder(folder), path, PackOptions(mode=mode, max_resolution=side), workers=threads)
    return path


def many_records(folder: Path, count: int) -> Path:
    """A .beton file of ``count`` images of one pixel: the cost of a large data set apart from its images."""
    path = folder / f"records_{count}.beton"
    if not path.exists():
        names = [f"a/{i:07}.png" for i in range(count)]
        with BetonWriter(path, count) as writer:
            for i in range(count):
                writer.add(index=i, label=0, mode=RAW, height=1, width=1, data=b"rgb")
            records = writer.finish()
        images = PackedImages(paths=names, labels=[0] * count, classes=("a",), bad={}, options={})
        write_sidecar(sidecar_path(path), path, records, images)
    return path


def time_swap(bench: LoadingBench) -> Iterator[Row]:
    """Opening a large file, and the time from a new table to the first batch that is cropped with it, shuffled."""
    path, count = many_records(bench.root.parent, bench.rows), bench.rows

    def table() -> BoxTable:
        boxes = BoxTable.whole(count)
        boxes.boxes[:, 2:] = 0.5
        return boxes

    plan = CropPlan(size=8, seed=SEED, scale=SCALE, ratio=RATIO, table=table())
    source = Beton(path)
    loader = open_loader("ffcv", source, plan, replace(bench.options, batch_size=64))
    renewed = replace(plan, table=table())

    def first_batch() -> None:
        next(iter(loader))

    def swap() -> None:
        loader.set_plan(renewed)
        first_batch()

    open_ways: Ways = {"open": lambda: Beton(path), "stock": lambda: OSCacheManager(Reader(str(path)))}
    opened = time_pairs(open_ways, repeats=bench.repeats)
    swapped = time_pairs({"swap": swap, "first batch": first_batch}, repeats=bench.repeats)
    windows: Ways = {"windows": lambda: loader.plan.windows(0, np.arange(count), source.sizes)}
    up_front = time_pairs(windows, repeats=min(bench.repeats, 3))["windows"]
    second, facts = np.ones(bench.repeats), {"records": count, "rounds": bench.repeats}
    stock = "FFCV's reader and OS cache manager"
    yield compare("ffcv, open", opened["open"], opened["stock"], against=stock) | facts
    name = "ffcv, from set_plan to the first batch"
    yield compare(name, swapped["swap"], second, against="1 s", target=1.0) | facts
    yield compare("ffcv, first batch, the same table", swapped["first batch"], second, against="1 s") | facts
    name = "ffcv, windows of all images, not needed"
    yield compare(name, up_front, np.ones(len(up_front)), against="1 s") | facts


def time_loaders(bench: LoadingBench) -> Iterator[Row]:
    """The rows; ``against`` names the way that ``limit`` and ``ratio`` refer to."""
    images, root = InMemory(bench.root), bench.root
    jpg, raw, planes = (packed(root, mode, bench.threads) for mode in MODES)
    small_jpg, small_raw, small_planes = (packed(root, mode, bench.threads, side=SMALL) for mode in MODES)
    crops, boxes = bench.crops(), bench.crops(half_side_boxes(len(images)))

    def engine(path: Path, plan: Plan, *, crop: Place = "cpu", name: str = "ffcv", shuffle: bool = True) -> Loader:
        return open_loader(name, path, plan, replace(bench.options, crop=crop), shuffle=shuffle)

    # FFCV's loaders are last: the way right after one is up to 10 % slower.
    ways: Ways = {
        "decode": partial(decode_alone, images, bench),
        "jpg": partial(consume, engine(jpg, crops)),
        "jpg of boxes": partial(consume, engine(jpg, boxes)),
        "jpg again": partial(consume, engine(jpg, crops)),
        "jpg, device": partial(consume, engine(jpg, crops, crop="gpu")),
        "folder": partial(consume, engine(root, crops, name="folder")),
        "whole": partial(consume, engine(jpg, WholePlan(size=bench.size), shuffle=False)),
        "raw": partial(consume, engine(raw, crops)),
        "raw of boxes": partial(consume, engine(raw, boxes)),
        "planes": partial(consume, engine(planes, crops)),
        "small jpg": partial(consume, engine(small_jpg, crops)),
        "small raw": partial(consume, engine(small_raw, crops)),
        "small planes": partial(consume, engine(small_planes, crops)),
        "small raw again": partial(consume, engine(small_raw, crops)),
        "stock jpg": partial(consume, stock_loader(jpg, bench, views=2)),
        "stock jpg, one view": partial(consume, stock_loader(jpg, bench, views=1)),
        "stock raw": partial(consume, stock_loader(raw, bench, views=2)),
    }
    seconds = time_pairs(ways, repeats=bench.repeats)  # the warm-up round compiles and reads the files
    facts: Row = {"threads": bench.threads, "rounds": bench.repeats}
    yield from compare_pairs(seconds, PAIRS, images=len(images), facts=facts)


def rows(bench: LoadingBench) -> Iterator[Row]:
    """All rows."""
    path = packed(bench.root, "jpg", bench.threads)
    yield memory_over_epochs("ffcv", path, bench)  # first, before FFCV's loaders allocate theirs
    yield from time_loaders(bench)
    yield from time_swap(bench)


def main() -> None:
    bench = read_loading_bench(__doc__)
    record(bench.out, rows(bench))


if __name__ == "__main__":
    main()
