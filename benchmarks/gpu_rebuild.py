"""The rebuild of D^att: the decoders alone, ``build_box_table`` from JPEG files, and the prediction for ImageNet."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.gpu_boxes import REBUILD, Pass, encoder_name, pass_options, pass_seconds, ready_loader
from benchmarks.gpu_models import build
from benchmarks.gpu_product import KEY, engines, image_folder, loading_rates, open_engine
from benchmarks.gpu_timing import Bench, Way, time_ways
from benchmarks.images import cloud_jpegs
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.loaders import WholePlan
from saga_fast.methods import Method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.profile.figures import Row, compare

IMAGENET = 1_281_167
HARDWARE_LOADS = (0.0, 0.65, 1.0)
"""Of DALI's ``hw_decoder_load``; 0.65 is its default."""
LEVELS = 2.0
"""Mean difference from libjpeg-turbo that a decoder may have: decoders differ in the chroma's upsampling."""
Decode = Callable[[list[Tensor]], list[Tensor]]


def decoders(bench: Bench, threads: ThreadPoolExecutor, count: int) -> dict[str, Decode]:
    """Name -> decoder of a batch to (3, H, W) uint8 each; libjpeg-turbo on ``count`` threads comes first."""
    one = partial(decode_jpeg, mode=ImageReadMode.RGB)

    def by_threads(files: list[Tensor]) -> list[Tensor]:
        return list(threads.map(one, files))

    def by_nvjpeg(files: list[Tensor]) -> list[Tensor]:
        images: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device="cuda")
        return images

    ways: dict[str, Decode] = {f"libjpeg-turbo, {count} threads": by_threads}
    return ways | {"nvJPEG": by_nvjpeg} if bench.cuda else ways


def time_decoders(bench: Bench) -> Iterator[Row]:
    """Each decoder alone on files in memory, without upload; their pixels against libjpeg-turbo's."""
    files = cloud_jpegs(8, width=96, height=72) if bench.small else cloud_jpegs(64) * 8
    batch = 4 if bench.small else 256
    jpegs = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    batches = [jpegs[i : i + batch] for i in range(0, len(jpegs), batch)]
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads:
        kinds = decoders(bench, threads, cores)
        ways = {name: Way([partial(decode, files) for files in batches]) for name, decode in kinds.items()}
        seconds = time_ways(bench, ways, repeats=8)
        against = next(iter(kinds))
        expected = kinds[against](batches[0])
        for name, decode in kinds.items():
            images = [image.cpu() for image in decode(batches[0])]
            levels = [(x.int() - y.int()).abs().float().mean() for x, y in zip(images, expected, strict=True)]
            apart = float(torch.stack(levels).mean())
            row = compare(f"decode, {name}", seconds[name], seconds[against], against=against, images=batch)
            row |= {"mean_levels_from_libjpeg": apart, "clock": bench.clock(ways[name])}
            yield row if apart < LEVELS else row | {"error": f"{apart:.2f} levels from libjpeg-turbo in the mean"}
    if bench.cuda and find_spec("nvidia.dali"):
        for load in HARDWARE_LOADS:
            rate = rate_of_dali(files[:batch], cores, load)
            row = {"name": f"decode, DALI, hw_decoder_load {load:g}", "images_per_second": rate, "images": batch}
            row |= {"limit": batch / float(np.median(seconds["nvJPEG"])), "against": "nvJPEG by torchvision"}
            yield row | {"ratio": rate / row["limit"]}


def rate_of_dali(files: list[bytes], threads: int, hardware_load: float) -> float:
    """Images per second of DALI's mixed decoder alone, of which this share goes to the hardware decoder."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    arrays = [np.frombuffer(file, np.uint8) for file in files]
    pipeline = Pipeline(batch_size=len(files), num_threads=threads, device_id=0, prefetch_queue_depth=2)
    with pipeline:
        encoded = fn.external_source(
            source=lambda: arrays, batch=True, dtype=types.DALIDataType.UINT8, ndim=1, no_copy=True
        )
        options: dict[str, Any] = {
            "output_type": types.DALIImageType.RGB,
            "jpeg_fancy_upsampling": True,
            "adjust_orientation": False,
        }
        pipeline.set_outputs(fn.decoders.image(encoded, device="mixed", hw_decoder_load=hardware_load, **options))
    pipeline.build()
    for _ in range(3):
        pipeline.run()
    rounds, begin = 8, time.perf_counter()
    for _ in range(rounds):
        pipeline.run()
    torch.cuda.synchronize()
    return rounds * len(files) / (time.perf_counter() - begin)


def time_rebuild(bench: Bench) -> Iterator[Row]:
    """The product's pass from 8,192 JPEG files per engine, in bf16 on a GPU, and its two limits."""
    model = build(bench, SimCLRConfig()).eval()
    batch = 8 if bench.small else 256
    way = Pass("bf16" if bench.cuda else "fp32", "eager", batch)
    loader = ready_loader(bench, batch, images=2 * batch if bench.small else 4096)
    options = pass_options(way, loader)
    pass_seconds(model, loader, options)
    ready = 1.0 / pass_seconds(model, loader, options)[0]
    chosen = [key for key in engines(bench) if key[2] == "gpu" and key != ("dali", "cpu", "gpu")] or engines(bench)
    with tempfile.TemporaryDirectory() as folder:
        root = image_folder(bench, Path(folder), copies=4 if bench.small else 128)
        for key in sorted(chosen, key=lambda key: key[:2] == ("folder", "cpu")):  # the slowest last
            try:
                bench.check_time()
                yield from _rebuild_rows(bench, model, root, key, options, ready)
            except Exception as error:  # an engine that is missing or fails must not hide the others
                name = f"rebuild, {key[0]}, decode {key[1]}, crop {key[2]}"
                yield {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _rebuild_rows(
    bench: Bench, model: Method, root: Path, key: KEY, options: AttentionPass, ready: float
) -> Iterator[Row]:
    """The measured row and the predicted one; ``ready`` is the images per second of the pass on ready batches."""
    name = f"rebuild, {key[0]}, decode {key[1]}, crop {key[2]}"
    loader = open_engine(bench, root, key, WholePlan(size=options.size))
    limits = {"loading": float(np.median(loading_rates(bench, loader, 2))), "attention pass": ready}
    seconds = []
    for _ in range(1 if bench.small else 2):
        begin = time.perf_counter()
        build_box_table(model, loader, options)
        seconds.append(time.perf_counter() - begin)
    images = len(loader.source)
    bottleneck = min(limits, key=lambda name: limits[name])
    facts: Row = {"limits_images_per_second": limits, "bottleneck": bottleneck, "images": images}
    facts |= {"network": encoder_name(bench), "precision": options.precision}
    ours = np.array(seconds) / images
    floor = np.full_like(ours, 1.0 / limits[bottleneck])
    yield compare(name, ours, floor, against=f"{bottleneck} alone", images=1) | facts
    target = np.full_like(ours, REBUILD)
    against = f"4 minutes on one H100; bottleneck: {bottleneck}"
    predicted = f"rebuild of {IMAGENET:,} images{name.removeprefix('rebuild')}, predicted"
    yield compare(predicted, ours * IMAGENET, target, against=against, target=1.0) | facts
