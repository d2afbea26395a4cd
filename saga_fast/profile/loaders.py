"""``profile loaders``: the best engine, thread count and batch size for these images on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from saga_fast.errors import SagaError
from saga_fast.loaders import CropPlan, LoaderOptions, Place, open_loader, open_source
from saga_fast.profile.figures import Row
from saga_fast.profile.measure import Measured, batches, decoding, measure
from saga_fast.runtime.address import Location

CLOSE = 0.97
"""Rates within 3 % of the best count as equal; of these, fewer threads and smaller batches are preferred."""


@dataclass(frozen=True, kw_only=True)
class LoadersProfile:
    """What to measure.

    Attributes:
        data: (engine, path of its images).
        size: side of the views, pixels.
        num_views: views per image.
        threads, batch_sizes: the numbers to try.
        prefetch: batches loaded ahead.
        seconds: per combination.
        device: device of the views.
        decode, crop: where images are decoded and cropped.
    """

    data: Sequence[tuple[str, Location]]
    size: int = 224
    num_views: int = 2
    threads: Sequence[int]
    batch_sizes: Sequence[int]
    prefetch: int = 2
    seconds: float = 5.0
    device: torch.device
    decode: Place = "auto"
    crop: Place = "auto"

    @property
    def combinations(self) -> int:
        """The number of rows of :func:`profile_loaders`."""
        return len(self.threads) * (1 + len(self.data) * len(self.batch_sizes)) + (self.device.type == "cuda")


def profile_loaders(profile: LoadersProfile) -> Iterator[Row]:
    """One row per measurement: for each thread count decoding alone, then each engine and batch size.

    Decoding alone is the limit of the engines. On a GPU the first row is the copy of a batch to the GPU, the limit of
    any loader.
    """
    source = open_source(*profile.data[0])
    if profile.device.type == "cuda":
        yield _upload_row(profile)
    for threads in profile.threads:
        limit = measure(
            decoding(source, threads=threads, batch_size=profile.batch_sizes[0]), seconds=profile.seconds, warmup=2
        )
        yield limit.row(
            f"read and decode alone, {threads} threads",
            limit=limit.images_per_second,
            against="itself",
            threads=threads,
        )
        for engine, path in profile.data:
            for batch_size in profile.batch_sizes:
                yield _engine_row(profile, engine, path, threads, batch_size, limit)


def recommend(rows: Sequence[Row]) -> str | None:
    """The best combination as ``--set`` values of ``saga-fast train``, None if no engine worked."""
    measured = _engine_rows(rows)
    if not measured:
        return None
    best = max(row["images_per_second"] for row in measured)
    close = [row for row in measured if row["images_per_second"] >= CLOSE * best]
    row = min(close, key=lambda row: (row["threads"], row["batch_size"], -row["images_per_second"]))
    return (
        f"data.engine={row['engine']} data.threads={row['threads']} data.prefetch={row['prefetch']}"
        f" batch_size={row['batch_size']}"
    )


def describe_bottleneck(rows: Sequence[Row]) -> str:
    """The bottleneck of the fastest combination, as one line for the user."""
    fastest = max(_engine_rows(rows), key=lambda row: row["images_per_second"])
    uploads = [row for row in rows if row["name"].startswith("copy")]
    if uploads and uploads[0]["images_per_second"] < 1.1 * fastest["images_per_second"]:
        return "the copy to the GPU is the bottleneck: crop on the GPU (--crop gpu), or use smaller views"
    share = f"{fastest['ratio']:.2f} of the rate of reading and decoding alone"
    if fastest["ratio"] > 0.7:
        return f"decoding is the bottleneck: the loader reaches {share}"
    if fastest["cpu"] < 0.7 * fastest["threads"]:
        busy = f"{fastest['cpu']:.1f} of {fastest['threads']} cores are busy"
        return f"reading or waiting is the bottleneck: {busy}; try more threads"
    return f"cropping is the bottleneck: all cores are busy, and the loader reaches {share}"


def _engine_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of engines that worked."""
    return [row for row in rows if "engine" in row and "error" not in row]


def _engine_row(
    profile: LoadersProfile, engine: str, path: Location, threads: int, batch_size: int, limit: Measured
) -> Row:
    name = f"{engine}, {profile.num_views} views, {threads} threads, batches of {batch_size}"
    facts = {"engine": engine, "threads": threads, "batch_size": batch_size, "prefetch": profile.prefetch}
    try:
        options = LoaderOptions(
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            threads=threads,
            prefetch=profile.prefetch,
            device=profile.device,
            decode=profile.decode,
            crop=profile.crop,
        )
        plan = CropPlan(size=profile.size, seed=0, num_views=profile.num_views)
        loader = open_loader(engine, path, plan, options)
        measured = measure(batches(loader), seconds=profile.seconds, warmup=profile.prefetch + 2)
    except SagaError as error:
        return {"name": name, "error": str(error), **facts}
    return measured.row(name, limit=limit.images_per_second, against="read and decode alone", **facts)


def _upload_row(profile: LoadersProfile) -> Row:
    """The rate of copying the views of images from page-locked memory to the GPU."""
    count = profile.batch_sizes[-1]
    shape = (count, profile.num_views, profile.size, profile.size, 3)
    views = torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def copies() -> Iterator[int]:
        views.to(profile.device, non_blocking=True)
        torch.cuda.synchronize(profile.device)
        yield count

    measured = measure(copies, seconds=min(profile.seconds, 1.0), warmup=2)
    return measured.row("copy of the views to the GPU", limit=measured.images_per_second, against="itself")
