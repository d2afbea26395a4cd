"""``profile loaders``: which engine, thread count and batch size to choose on this machine for these images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from saga_fast.errors import SagaError
from saga_fast.loaders import CropPlan, LoaderOptions, Place, open_loader, open_source
from saga_fast.profile.figures import Row
from saga_fast.profile.measure import Measured, batches, decoding, measure

CLOSE = 0.97
"""A rate within 3 % of the best counts as the best; fewer threads and smaller batches are then preferred."""


@dataclass(frozen=True, kw_only=True)
class LoadersProfile:
    """What to measure."""

    data: Sequence[tuple[str, str]]
    """Engines and what each of them reads."""
    size: int = 224
    num_views: int = 2
    threads: Sequence[int]
    batch_sizes: Sequence[int]
    prefetch: int = 2
    seconds: float = 5.0
    """Per combination."""
    device: torch.device
    decode: Place = "auto"
    crop: Place = "auto"

    @property
    def combinations(self) -> int:
        """How many rows :func:`profile_loaders` yields."""
        return len(self.threads) * (1 + len(self.data) * len(self.batch_sizes)) + (self.device.type == "cuda")


def profile_loaders(profile: LoadersProfile) -> Iterator[Row]:
    """A row per measurement, as it is done: decoding alone for each thread count, then every engine beside it.

    On a GPU the copy of a batch to it is a row too: a loader faster than that gains nothing.
    """
    source = open_source(*profile.data[0])
    if profile.device.type == "cuda":
        yield _upload(profile)
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
                yield _engine(profile, engine, path, threads, batch_size, limit)


def recommend(rows: Sequence[Row]) -> str | None:
    """The config line of the best combination: the ``--set`` values of ``saga-fast train``; None if none worked."""
    tried = [row for row in rows if "engine" in row and "error" not in row]
    if not tried:
        return None
    best = max(row["images_per_second"] for row in tried)
    close = [row for row in tried if row["images_per_second"] >= CLOSE * best]
    row = min(close, key=lambda row: (row["threads"], row["batch_size"], -row["images_per_second"]))
    return (
        f"data.engine={row['engine']} data.threads={row['threads']} data.prefetch={row['prefetch']}"
        f" batch_size={row['batch_size']}"
    )


def binding(rows: Sequence[Row]) -> str:
    """What keeps the fastest combination from being faster, in words."""
    row = max((row for row in rows if "engine" in row and "error" not in row), key=lambda row: row["images_per_second"])
    uploads = [other for other in rows if other["name"].startswith("copy")]
    if uploads and uploads[0]["images_per_second"] < 1.1 * row["images_per_second"]:
        return "the copy to the GPU binds: crop there (crop: gpu), or send smaller views"
    if row["ratio"] > 0.7:
        return f"decoding binds: the loader runs at {row['ratio']:.2f} of reading and decoding alone"
    if row["cpu"] < 0.7 * row["threads"]:
        return f"reading or waiting binds: {row['cpu']:.1f} of {row['threads']} cores are busy; try more threads"
    return f"cropping binds: the cores are busy, at {row['ratio']:.2f} of reading and decoding alone"


def _engine(profile: LoadersProfile, engine: str, path: str, threads: int, batch_size: int, limit: Measured) -> Row:
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


def _upload(profile: LoadersProfile) -> Row:
    """Images whose views are copied from page-locked memory per second."""
    count = profile.batch_sizes[-1]
    shape = (count, profile.num_views, profile.size, profile.size, 3)
    views = torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def copies() -> Iterator[int]:
        views.to(profile.device, non_blocking=True)
        torch.cuda.synchronize(profile.device)
        yield count

    measured = measure(copies, seconds=min(profile.seconds, 1.0), warmup=2)
    return measured.row("copy of the views to the GPU", limit=measured.images_per_second, against="itself")
