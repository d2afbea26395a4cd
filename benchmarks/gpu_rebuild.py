"""The rebuild of D^att on a GPU: JPEGs in memory to boxes on the host. nvJPEG is left out on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.gpu_inputs import finished_views
from benchmarks.gpu_models import attention_pass, bare_forward, boxes_of, build, network
from benchmarks.gpu_timing import Bench, Way, time_ways
from benchmarks.images import cloud_jpegs
from saga_fast.methods import Method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.profile.figures import Row, Seconds, compare

IMAGENET = 1_281_167
REBUILD = 240.0
"""Seconds on one H100: the target."""
QUEUE = 6
"""Times over the files, so that the first batch, whose decoding nothing hides, counts little."""
LEVELS = 2.0
"""Mean difference from libjpeg-turbo that a decoder may have: decoders differ in the chroma's upsampling."""
Batch = tuple[Tensor, Tensor]
"""Images (B, H, W, 3) uint8, padded, on the device, and their whole windows (B, 1, 4)."""
Decode = Callable[[list[Tensor]], Batch]


def jpegs_in_memory(bench: Bench) -> list[Tensor]:
    """JPEGs of ImageNet's size, of which 64 are different: no decoder remembers them."""
    files = cloud_jpegs(8, width=96, height=72) if bench.small else cloud_jpegs(64) * 8
    return [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]


def padded(bench: Bench, images: list[Tensor]) -> Batch:
    """Planar images of any size as a padded batch on the device.

    The upload is from page-locked memory and not waited for: it would wait for the forward pass that runs meanwhile.
    """
    sizes = np.array([image.shape[1:] for image in images])
    height, width = (int(side) for side in sizes.max(0))
    source = images[0].device
    locked = bench.cuda and source.type == "cpu"
    batch = torch.empty((len(images), height, width, 3), dtype=torch.uint8, device=source, pin_memory=locked)
    for target, image in zip(batch, images, strict=True):
        target[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0)
    windows = np.concatenate([np.zeros_like(sizes), sizes], 1)[:, None].astype(np.int32)
    return batch.to(bench.device, non_blocking=True), torch.from_numpy(windows)


def whole_views(bench: Bench, side: int, images: Tensor, windows: Tensor) -> Tensor:
    """The input of the attention pass: (B, 3, side, side)."""
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    return finished_views(bench, images, windows, None, side, dtype)[:, 0]


def decoders(bench: Bench, threads: ThreadPoolExecutor, count: int) -> dict[str, Decode]:
    """Name -> decoder; libjpeg-turbo on ``count`` threads comes first."""
    one = partial(decode_jpeg, mode=ImageReadMode.RGB)

    def by_threads(files: list[Tensor]) -> Batch:
        return padded(bench, list(threads.map(one, files)))

    def by_nvjpeg(files: list[Tensor]) -> Batch:
        return padded(bench, decode_jpeg(files, mode=ImageReadMode.RGB, device="cuda"))

    found: dict[str, Decode] = {f"libjpeg-turbo, {count} threads": by_threads}
    return found | {"nvJPEG": by_nvjpeg} if bench.cuda else found


def time_stages(bench: Bench, model: Method, batch: Batch, side: int) -> dict[str, float]:
    """Seconds per image of the stages after decoding, each alone."""
    views = whole_views(bench, side, *batch)
    features = bare_forward(bench, model.encoder.features, views)
    stages = {
        "crop_resize and normalise": Way([partial(whole_views, bench, side, *batch)], 4 if bench.cuda else 1),
        "forward": Way([partial(bare_forward, bench, model.encoder.features, views)]),
        "weights and boxes": Way([partial(boxes_of, bench, model, features, side)]),
    }
    seconds = time_ways(bench, stages, repeats=10)
    return {name: float(np.median(values)) / len(views) for name, values in seconds.items()}


def levels_apart(decoder: str, images: Tensor, expected: Tensor) -> float:
    """Mean difference of a decoder's levels from libjpeg-turbo's.

    Raises:
        ValueError: it is LEVELS or more.
    """
    apart = float((images.int() - expected.int()).abs().float().mean())
    if not apart < LEVELS:
        raise ValueError(f"{decoder} decodes {apart:.2f} levels away from libjpeg-turbo in the mean")
    return apart


def time_rebuild(bench: Bench) -> Iterator[Row]:
    """Each stage alone, all of them with decoding a batch ahead, and the prediction for ImageNet."""
    batch, side = (4, 64) if bench.small else (256, 224)
    jpegs = jpegs_in_memory(bench)
    batches = [jpegs[i : i + batch] for i in range(0, len(jpegs), batch)]
    cores = len(os.sched_getaffinity(0))
    model = build(bench, SimCLRConfig()).eval()
    facts: Row = {"batch": batch, "side": side, "network": network(bench), "impl": bench.impl}
    with ThreadPoolExecutor(cores) as threads, ThreadPoolExecutor(1) as ahead:
        kinds = decoders(bench, threads, cores)
        stored = next(iter(kinds.values()))(batches[0])
        alone = time_stages(bench, model, stored, side)
        for decoder, decode in kinds.items():
            apart = levels_apart(decoder, decode(batches[0])[0], stored[0])

            def rebuild(decode: Decode = decode) -> None:
                queue = batches * QUEUE
                following = ahead.submit(decode, queue[0])
                for i in range(len(queue)):
                    images = following.result()
                    if i + 1 < len(queue):
                        following = ahead.submit(decode, queue[i + 1])
                    attention_pass(bench, model, model.encoder.features, whole_views(bench, side, *images))

            ways = {"rebuild": Way([rebuild]), "decode": Way([partial(decode, files) for files in batches])}
            seconds = time_ways(bench, ways, repeats=8)
            decoding = float(np.median(seconds["decode"])) * len(batches) / len(jpegs)
            rates = {name: 1.0 / taken for name, taken in (alone | {"decode and upload": decoding}).items()}
            clock: Row = {"mean_levels_from_libjpeg": apart, "clock": bench.clock(ways["rebuild"])}
            for row in rows_of_rebuild(decoder, seconds["rebuild"] / (QUEUE * len(jpegs)), rates):
                yield row | facts | clock


def rows_of_rebuild(decoder: str, ours: Seconds, rates: dict[str, float]) -> Iterator[Row]:
    """The measured row and the predicted one.

    Args:
        decoder: its name.
        ours: (repeats,) seconds per image.
        rates: images per second of each stage alone.
    """
    bottleneck = min(rates, key=lambda name: rates[name])
    facts: Row = {"decoder": decoder, "stages_images_per_second": rates, "bottleneck": bottleneck}
    floor = np.full_like(ours, 1.0 / rates[bottleneck])
    yield compare(f"rebuild, {decoder}", ours, floor, against=f"{bottleneck} alone", images=1) | facts
    name = f"rebuild of {IMAGENET:,} images, {decoder}, predicted"
    against = f"4 minutes on one H100; bottleneck: {bottleneck}"
    yield compare(name, ours * IMAGENET, np.full_like(ours, REBUILD), against=against, target=1.0) | facts
