"""The product on a GPU: nvJPEG under load, every engine against the CPU's views, and the attention pass as it is called.

The images are JPEGs of ImageNet's size in a folder and, for FFCV, packed into a .beton file.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_models import build, network
from benchmarks.gpu_timing import Bench
from benchmarks.images import cloud_jpegs
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.device_images import decode_jpegs
from saga_fast.loaders.loader import Place
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.profile.figures import Row

LEVELS = 2.0
"""Mean difference that views from a GPU's decoder may have: decoders differ in the chroma's upsampling."""
KEY = tuple[str, Place, Place]


def image_folder(bench: Bench, root: Path) -> Path:
    """An ImageFolder of JPEGs, of which 64 are different."""
    files = cloud_jpegs(6, width=96, height=72) * 4 if bench.small else cloud_jpegs(64) * 32
    for i, data in enumerate(files):
        path = root / "images" / f"class_{i % 4}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root / "images"


def engines(bench: Bench) -> list[KEY]:
    """(engine, decode, crop) of every way to load for this device; a missing package is a row of its own."""
    places: list[tuple[Place, Place]] = [("cpu", "cpu")]
    ways: list[KEY] = [("folder", *places[0])]
    if bench.cuda:
        ways += [("folder", "cpu", "gpu"), ("folder", "gpu", "gpu"), ("dali", "gpu", "gpu"), ("dali", "cpu", "gpu")]
    return [*ways, ("dali", "cpu", "cpu"), ("ffcv", "cpu", "gpu" if bench.cuda else "cpu")]


def time_engines(bench: Bench) -> Iterator[Row]:
    """Each engine's two views inside boxes: equal to the folder engine's on the CPU, and images/s of a later epoch."""
    with tempfile.TemporaryDirectory() as folder:
        root = image_folder(bench, Path(folder))
        source = ImageFolder(root)
        rng = np.random.default_rng(bench.seed)
        boxes = np.concatenate([rng.uniform(0, 0.5, (len(source), 2)), np.full((len(source), 2), 0.5)], 1)
        table = BoxTable.whole(len(source))
        table.boxes[:] = boxes
        plan = CropPlan(size=32 if bench.small else 224, seed=bench.seed, table=table)
        expected: torch.Tensor | None = None
        baseline = 0.0
        for engine, decode, crop in engines(bench):
            name = f"engine {engine}, decode {decode}, crop {crop}"
            try:
                loader = _open(bench, engine, root, plan, decode, crop)
                first = next(iter(loader)).views.cpu()
                apart = 0.0 if expected is None else float((first.int() - expected.int()).abs().float().mean())
                expected = first if expected is None else expected
                rate = _rate(bench, loader)
            except Exception as error:  # an engine that is missing or fails must not hide the others
                yield {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
                continue
            baseline = baseline or rate
            row: Row = {"name": name, "images_per_second": rate, "limit": baseline, "against": "folder on the CPU"}
            row |= {"ratio": rate / baseline, "mean_levels_apart": apart}
            limit = LEVELS if decode == "gpu" else 0.51
            yield row if apart < limit else row | {"error": f"views differ by {apart:.3g} levels in the mean"}


def _open(bench: Bench, engine: str, root: Path, plan: CropPlan | WholePlan, decode: Place, crop: Place) -> Loader:
    path = root
    if engine == "ffcv":
        path = root.with_suffix(".beton")
        if not path.exists():
            from saga_fast.loaders.ffcv.pack import PackOptions, pack

            pack(ImageFolder(root), path, PackOptions(), workers=8)
    options = LoaderOptions(batch_size=8 if bench.small else 256, device=bench.device, decode=decode, crop=crop)
    return open_loader(engine, path, plan, options)


def _rate(bench: Bench, loader: Loader) -> float:
    """Images per second of an epoch, from its second batch to its end."""
    loader.set_epoch(1)
    count, begin = 0, 0.0
    for number, batch in enumerate(loader):
        if number == 0:
            begin = time.perf_counter()
        else:
            count += len(batch.index)
    if bench.cuda:
        torch.cuda.synchronize()
    return count / (time.perf_counter() - begin)


def check_decoder(bench: Bench) -> Iterator[Row]:
    """nvJPEG while the device is busy: 200 batches, each against the same batch decoded on an idle device."""
    if not bench.cuda:
        return
    files = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in cloud_jpegs(32)]
    torch.cuda.synchronize()
    expected = [image.clone() for image in decode_jpegs(files, bench.device) if image is not None]
    torch.cuda.synchronize()
    a = torch.randn(4096, 4096, device=bench.device, dtype=torch.bfloat16)
    for repeat in range(2):
        wrong = []
        for number in range(200):
            scratch = [torch.full((375, 500, 3), 255, dtype=torch.uint8, device=bench.device) for _ in files]
            for image in scratch:
                image.add_(1)
            a @ a  # keeps the caller's stream busy
            del scratch  # its memory goes to the decoder while the kernels above may still write to it
            images = [image for image in decode_jpegs(files, bench.device) if image is not None]
            same = torch.stack([(x == y).all() for x, y in zip(images, expected, strict=True)]).all()
            wrong.append(~same)
            del images
        count = int(torch.stack(wrong).sum())
        row: Row = {"name": f"nvJPEG under load, repeat {repeat}", "deviation": float(count), "limit": 200.0}
        row |= {"against": "batches", "ratio": 200.0 / max(count, 1)}
        yield row | ({"error": f"{count} of 200 batches differ"} if count else {})


def time_passes(bench: Bench) -> Iterator[Row]:
    """``build_box_table`` on a folder of JPEGs, and the same loader without a network."""
    with tempfile.TemporaryDirectory() as folder:
        root = image_folder(bench, Path(folder))
        side = 64 if bench.small else 224
        model = build(bench, SimCLRConfig()).eval()
        loader = _open(bench, "folder", root, WholePlan(size=side), "cpu", "cpu")
        alone = _rate(bench, loader)
        for precision in ("fp32", "bf16"):
            for forward in ("eager", "compiled"):
                options = AttentionPass(size=side, precision=precision, channels_last=True, forward=forward)
                name = f"build_box_table, {precision}, {forward}"
                try:
                    build_box_table(model, loader, options)
                    begin = time.perf_counter()
                    build_box_table(model, loader, options)
                    rate = len(loader.source) / (time.perf_counter() - begin)
                except Exception as error:
                    yield {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
                    continue
                row: Row = {"name": name, "images_per_second": rate, "limit": alone, "against": "the loader alone"}
                yield row | {"ratio": rate / alone, "network": network(bench)}
                if bench.late:
                    return


def has_dali() -> bool:
    """Whether DALI can be imported here."""
    return find_spec("nvidia.dali") is not None
