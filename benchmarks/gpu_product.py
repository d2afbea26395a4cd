"""The loaders on a GPU: nvJPEG under load, and every engine against the CPU's views.

The images are JPEGs of ImageNet's size in a folder and, for FFCV, packed into a .beton file.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu_timing import Bench
from benchmarks.images import cloud_jpegs
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, Loader, LoaderOptions, Plan, open_loader
from saga_fast.loaders.device_images import Images, ImageStream, decode_jpegs
from saga_fast.loaders.loader import Place
from saga_fast.profile.figures import Row

LEVELS = 2.0
"""Mean difference that views from a GPU's decoder or of stored planes may have: they differ in the chroma."""
ROUNDING = 0.51
"""The same for views of equal pixels: a level where a half is rounded the other way."""
KEY = tuple[str, Place, Place]
"""Engine and how its images are packed, where it decodes, and where it crops."""


def image_folder(bench: Bench, root: Path, *, copies: int) -> Path:
    """An ImageFolder of 64 different JPEGs, each ``copies`` times as a further name of the same file."""
    for i, data in enumerate(cloud_jpegs(6, width=96, height=72) if bench.small else cloud_jpegs(64)):
        first = root / "images" / f"class_{i % 4}" / f"{i:04d}_00.jpg"
        first.parent.mkdir(parents=True, exist_ok=True)
        first.write_bytes(data)
        for copy in range(1, copies):
            os.link(first, first.with_name(f"{i:04d}_{copy:02d}.jpg"))
    return root / "images"


def engines(bench: Bench) -> list[KEY]:
    """Every way to load for this device; a missing package is a row of its own."""
    if not bench.cuda:
        return [("folder", "cpu", "cpu"), ("dali", "cpu", "cpu"), ("ffcv", "cpu", "cpu"), ("ffcv yuv420", "cpu", "cpu")]
    return [
        ("folder", "cpu", "cpu"),
        ("folder", "cpu", "gpu"),
        ("folder", "gpu", "gpu"),
        ("dali", "cpu", "cpu"),
        ("dali", "cpu", "gpu"),
        ("dali", "gpu", "gpu"),
        ("ffcv", "cpu", "gpu"),
        ("ffcv yuv420", "cpu", "gpu"),
    ]


def open_engine(bench: Bench, root: Path, key: KEY, plan: Plan) -> Loader:
    """The loader of a folder's images; for FFCV they are packed on the first call."""
    name, decode, crop = key
    engine, _, planes = name.partition(" ")
    path = root
    if engine == "ffcv":
        path = root.with_name(f"{root.name}-{planes or 'jpg'}.beton")
        if not path.exists():
            from saga_fast.loaders.ffcv.pack import PackOptions, pack  # FFCV may be missing

            pack(
                ImageFolder(root),
                path,
                PackOptions(mode="yuv420" if planes else "jpg"),
                workers=1 if bench.small else 8,
            )
    batch_size = 8 if bench.small else 256
    options = LoaderOptions(batch_size=batch_size, device=bench.device, decode=decode, crop=crop)
    return open_loader(engine, path, plan, options)


def loading_rates(bench: Bench, loader: Loader, epochs: int = 3) -> npt.NDArray[np.float64]:
    """Images per second of epochs from their beginning to their end, (epochs,); one before warms up."""
    rates = []
    for epoch in range(1 + epochs):
        loader.set_epoch(epoch)
        begin = time.perf_counter()
        count = sum(len(batch.index) for batch in loader)
        if bench.cuda:
            torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - begin))
    return np.array(rates[1:])


def time_engines(bench: Bench) -> Iterator[Row]:
    """Each engine's two views inside boxes: equal to the folder engine's on the CPU, and images/s."""
    with tempfile.TemporaryDirectory() as folder:
        root = image_folder(bench, Path(folder), copies=4 if bench.small else 32)
        count = len(ImageFolder(root))
        corners = np.random.default_rng(bench.seed).uniform(0, 0.5, (count, 2))
        table = BoxTable.whole(count)
        table.boxes[:] = np.concatenate([corners, np.full_like(corners, 0.5)], 1)
        plan = CropPlan(size=32 if bench.small else 224, seed=bench.seed, table=table)
        expected: torch.Tensor | None = None
        baseline = 0.0
        for key in engines(bench):
            name = f"engine {key[0]}, decode {key[1]}, crop {key[2]}"
            try:
                bench.check_time()
                loader = open_engine(bench, root, key, plan)
                first = next(iter(loader)).views.cpu().int()
                expected = first if expected is None else expected
                apart = float((first - expected).abs().float().mean())
                rates = loading_rates(bench, loader)
            except Exception as error:  # an engine that is missing or fails must not hide the others
                yield {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
                continue
            rate = float(np.median(rates))
            baseline = baseline or rate
            row: Row = {"name": name, "images_per_second": rate, "limit": baseline, "against": "folder on the CPU"}
            row |= {"slowest": rates.min(), "fastest": rates.max(), "threads": loader.options.threads}
            row |= {"ratio": rate / baseline, "mean_levels_apart": apart, "images": count}
            allowed = LEVELS if key[1] == "gpu" or "yuv420" in key[0] else ROUNDING
            yield row if apart < allowed else row | {"error": f"views differ by {apart:.3g} levels in the mean"}


def not_on_cpu(name: str) -> Row:
    """The row of a section that has nothing to do on the CPU."""
    return {"name": f"{name}: not on the CPU", "deviation": 0.0, "limit": 1.0, "ratio": 1.0, "against": "nothing"}


def check_decoder(bench: Bench) -> Iterator[Row]:
    """nvJPEG while the device is busy: 200 batches twice, each against the same batch decoded on an idle device.

    The product decodes in a stream of its own. In the caller's stream, as torchvision's documentation shows it, some
    batches come out wrong: how many is no error, but the reason for that stream.
    """
    if not bench.cuda:
        yield not_on_cpu("nvJPEG under load")
        return
    stream = ImageStream(bench.device)
    for repeat in range(2):
        for way, decode, keep in (
            ("the product's stream", lambda files: stream.decode(files).received(), stream.keep),
            ("the caller's stream", lambda files: decode_jpegs(files, bench.device), lambda _: None),
        ):
            count = _wrong_batches(bench, decode, keep)
            row: Row = {"name": f"nvJPEG under load, {way}, repeat {repeat}", "deviation": float(count), "limit": 200.0}
            row |= {"against": "batches", "ratio": 200.0 / max(count, 1)}
            failed = count and way == "the product's stream"
            yield row | ({"error": f"{count} of 200 batches differ"} if failed else {})


def _wrong_batches(bench: Bench, decode: Callable[[list[torch.Tensor]], Images], keep: Callable[[object], None]) -> int:
    """The number of 200 batches that differ from those of an idle device; ``keep`` gets each after its comparison."""
    files = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in cloud_jpegs(32)]
    torch.cuda.synchronize()
    expected = [image.clone() for image in decode(files) if image is not None]
    torch.cuda.synchronize()
    a = torch.randn(4096, 4096, device=bench.device, dtype=torch.bfloat16)
    wrong = []
    for _ in range(200):
        scratch = [torch.full((375, 500, 3), 255, dtype=torch.uint8, device=bench.device) for _ in files]
        for image in scratch:
            image.add_(1)
        a.mm(a)  # keeps the caller's stream busy
        del scratch  # its memory goes to the decoder while the kernels above may still write to it
        images = [image for image in decode(files) if image is not None]
        same = torch.stack([(x == y).all() for x, y in zip(images, expected, strict=True)]).all()
        wrong.append(~same)
        keep(images)
        del images
    return int(torch.stack(wrong).sum())
