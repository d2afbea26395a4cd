"""The ffcv engine beside FFCV's own loader with two RandomResizedCrop decoders, from the same .beton files.

Every way visits the same images once per round, on the same cores (the process binds itself to as many as there are
threads), and the ways take turns, so a ratio compares neighbours in time. One way is there twice: how far its two rows
differ is the machine's noise. FFCV and the engine crop with the same scale and ratio, each by its own draws.

Run it as ``PYTHONPATH=. python benchmarks/bench_ffcv.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader as StockLoader
from ffcv.loader import OrderOption
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline import PipelineSpec
from ffcv.reader import Reader
from ffcv.transforms import ToTensor

from benchmarks.loading import RATIO, SCALE, SEED, consume, decode_bytes, half_side_boxes, read_arguments
from benchmarks.swaps import memory_over_epochs
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, Loader, Place, Plan, WholePlan, open_loader
from saga_fast.loaders.ffcv.beton import RAW, Beton, sidecar_path
from saga_fast.loaders.ffcv.pack import PackOptions, pack, write_sidecar
from saga_fast.loaders.ffcv.writer import BetonWriter
from saga_fast.profile.figures import Row, Ways, compare, line, time_pairs, write


def stock_loader(path: Path, *, size: int, threads: int, batch_size: int, views: int) -> StockLoader:
    """FFCV's loader with one of its decoders per view, as FFCV's users take several views of an image."""
    decoders = [RandomResizedCropRGBImageDecoder((size, size), SCALE, RATIO) for _ in range(views)]
    others = {f"view_{i}": PipelineSpec("image", decoder=decoders[i], transforms=[ToTensor()]) for i in range(1, views)}
    return StockLoader(
        str(path),
        batch_size=batch_size,
        num_workers=threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=SEED,
        drop_last=False,
        batches_ahead=2,
        pipelines={"image": [decoders[0], ToTensor()], "label": None, "index": None, **others},
    )


def packed(folder: Path, mode: str, threads: int) -> Path:
    """The images as a .beton file, packed on the first call."""
    path = folder.with_name(f"{folder.name}_{mode}.beton")
    if not path.exists():
        pack(ImageFolder(folder), path, PackOptions(mode=mode), workers=threads)  # type: ignore[arg-type]
    return path


def many_records(folder: Path, count: int) -> Path:
    """A .beton of ``count`` images of one pixel: what a large set costs apart from its images."""
    path = folder / f"records_{count}.beton"
    if not path.exists():
        names = [f"a/{i:07}.png" for i in range(count)]
        with BetonWriter(path, count) as writer:
            for i in range(count):
                writer.add(index=i, label=0, mode=RAW, height=1, width=1, data=b"rgb")
            records = writer.finish()
        write_sidecar(
            sidecar_path(path), path, records, paths=names, labels=[0] * count, classes=("a",), bad={}, options={}
        )
    return path


def timed(action: Any, repeats: int) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Any]:
    """(repeats,) seconds, and what the last call gave."""
    seconds, result = np.empty(repeats), None
    for i in range(repeats):
        begin = time.perf_counter()
        result = action()
        seconds[i] = time.perf_counter() - begin
    return seconds, result


def bench_swap(folder: Path, count: int, *, threads: int, repeats: int) -> list[Row]:
    """Opening, and from a new table to the first batch that is cropped with it, shuffled, for ``count`` images."""
    path = many_records(folder, count)

    def table() -> BoxTable:
        found = BoxTable.whole(count)
        found.boxes[:, 2:] = 0.5
        return found

    opened, source = timed(lambda: Beton(path), repeats)
    stock, _ = timed(lambda: OSCacheManager(Reader(str(path))), repeats)
    plan = CropPlan(size=8, seed=SEED, scale=SCALE, ratio=RATIO, table=table())
    loader = open_loader("ffcv", source, plan, batch_size=64, threads=threads, shuffle=True)

    def swap() -> None:
        loader.set_plan(CropPlan(size=8, seed=SEED, scale=SCALE, ratio=RATIO, table=renewed))
        next(iter(loader))

    def first_batch() -> None:
        next(iter(loader))

    def windows_of_all() -> None:
        indices = np.arange(count)
        loader.plan.windows(0, indices, source.sizes)

    renewed = table()
    first_batch()
    times = time_pairs({"swap": swap, "first batch": first_batch}, repeats=repeats)
    up_front = time_pairs({"windows": windows_of_all}, repeats=min(repeats, 3))["windows"]
    one_second = np.ones(repeats)
    facts = {"records": count, "rounds": repeats}
    return [
        compare("ffcv, open", opened, stock, against="FFCV's reader and OS cache manager", **facts),
        compare(
            "ffcv, from set_plan to the first batch", times["swap"], one_second, against="1 s", target=1.0, **facts
        ),
        compare("ffcv, first batch, the same table", times["first batch"], one_second, against="1 s", **facts),
        compare("ffcv, windows of all images, not needed", up_front, np.ones(len(up_front)), against="1 s", **facts),
    ]


def bench(
    folder: Path, *, size: int, threads: int, batch_size: int, repeats: int, epochs: int, records: int
) -> list[Row]:
    """All rows; ``against`` in each names the way that ``limit`` and ``ratio`` refer to."""
    images = ImageFolder(folder)
    count = len(images)
    betons = {mode: packed(folder, mode, threads) for mode in ("jpg", "raw")}
    contents = [(images.root / path).read_bytes() for path in images.paths]
    crops = CropPlan(size=size, seed=SEED, scale=SCALE, ratio=RATIO)
    boxes = CropPlan(size=size, seed=SEED, scale=SCALE, ratio=RATIO, table=half_side_boxes(count))

    def engine(path: Path, plan: Plan, *, crop: Place = "cpu", name: str = "ffcv", shuffle: bool = True) -> Loader:
        options: dict[str, Any] = {"batch_size": batch_size, "seed": SEED, "threads": threads}
        return open_loader(name, path, plan, shuffle=shuffle, crop=crop, **options)

    memory = memory_over_epochs(
        engine(betons["jpg"], crops), "ffcv", epochs=epochs
    )  # before FFCV's loaders take theirs
    stock = partial(stock_loader, size=size, threads=threads, batch_size=batch_size)
    # FFCV's loaders last: what comes right after one is up to 10 % slower.
    ways: Ways = {
        "decode": partial(decode_bytes, contents, threads),
        "jpg": partial(consume, engine(betons["jpg"], crops)),
        "jpg of boxes": partial(consume, engine(betons["jpg"], boxes)),
        "jpg again": partial(consume, engine(betons["jpg"], crops)),
        "jpg, device": partial(consume, engine(betons["jpg"], crops, crop="gpu")),
        "folder": partial(consume, engine(folder, crops, name="folder")),
        "whole": partial(consume, engine(betons["jpg"], WholePlan(size=size), shuffle=False)),
        "raw": partial(consume, engine(betons["raw"], crops)),
        "raw of boxes": partial(consume, engine(betons["raw"], boxes)),
        "stock jpg": partial(consume, stock(betons["jpg"], views=2)),
        "stock jpg, one view": partial(consume, stock(betons["jpg"], views=1)),
        "stock raw": partial(consume, stock(betons["raw"], views=2)),
    }
    seconds = time_pairs(ways, repeats=repeats)  # the warm-up round compiles and reads every file
    facts: dict[str, Any] = {"threads": threads, "rounds": repeats}
    rows = [
        compare(name, seconds[way], seconds[other], against=against, images=count, **facts, **more)
        for name, way, other, against, more in (
            ("ffcv jpg, two views", "jpg", "stock jpg", "two stock FFCV decoders", {"target": 1.5}),
            ("ffcv jpg, two views of attention boxes", "jpg of boxes", "jpg", "ffcv jpg, two views", {"target": 1.0}),
            ("noise: ffcv jpg, two views, again", "jpg again", "jpg", "ffcv jpg, two views", {}),
            ("ffcv jpg, two views beside one", "jpg", "stock jpg, one view", "one stock FFCV decoder", {}),
            ("ffcv jpg, two views beside decoding", "jpg", "decode", "decode alone", {}),
            ("ffcv jpg, two views beside the folder's", "jpg", "folder", "folder, two views", {}),
            ("ffcv jpg, crop: gpu without a GPU", "jpg, device", "jpg", "ffcv jpg, two views", {}),
            ("ffcv jpg, one whole view", "whole", "decode", "decode alone", {}),
            ("ffcv raw, two views", "raw", "stock raw", "two stock FFCV decoders", {}),
            ("ffcv raw, two views of attention boxes", "raw of boxes", "raw", "ffcv raw, two views", {"target": 1.0}),
            ("ffcv raw, two views beside jpg", "raw", "jpg", "ffcv jpg, two views", {}),
        )
    ]
    del ways
    rows += bench_swap(folder.parent, records, threads=threads, repeats=repeats)
    return [*rows, memory]


def main() -> None:
    arguments, root = read_arguments(__doc__)
    rows = bench(
        root,
        size=arguments.size,
        threads=arguments.threads,
        batch_size=arguments.batch_size,
        repeats=arguments.repeats,
        epochs=arguments.epochs,
        records=arguments.rows,
    )
    write(arguments.out, rows)
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
