"""Listing, attention pass and table for as many images as ImageNet has, with the memory that they take."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from PIL import Image

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.parts import Parts
from saga_fast.loaders import BoxTable, ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.methods import build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.profile.figures import Row

IMAGENET = 1_281_167
THIN = EncoderConfig(name="resnet18", args={"layers": [1] * 4, "channels": [8, 8, 8, 16]})
WHOLE, BATCHES = WholePlan(size=32), LoaderOptions(batch_size=256)
PASS = AttentionPass(size=32, forward="eager")


def imagenet_size(folder: Path, names: int) -> Iterator[Row]:
    """The rows of listing and fingerprint, an attention pass over all images, and the table's file.

    The images are 8 px wide and a thin network gets 32 px, because memory is measured: in excess of the model and the
    batches of a pass over the first folder of a thousand names. Names share files.
    """
    root = make_names(folder / "names", names)
    torch.manual_seed(0)
    model = build_method(SimCLRConfig(), THIN)
    build_box_table(model, open_loader("folder", ImageFolder(root / "n00000000"), WHOLE, BATCHES), PASS)
    memory = psutil.Process().memory_info
    before, begin = memory().rss, time.perf_counter()
    source = ImageFolder(root)
    fingerprint = source.fingerprint
    seconds, grown = time.perf_counter() - begin, memory().rss - before
    yield seconds_row("listing and fingerprint", names, seconds, grown)
    begin = time.perf_counter()
    with sampled_memory() as samples:
        table = build_box_table(
            model, open_loader("folder", source, WHOLE, BATCHES), PASS, parts=Parts(folder / "parts")
        )
    grown = max(samples) - before
    yield {
        "name": f"attention pass and listing, {names} images",
        "bytes": grown,
        "limit": 1e9,
        "against": "the target, in addition to model and batches",
        "ratio": 1e9 / grown,
        "pass_seconds": time.perf_counter() - begin,
    }
    begin = time.perf_counter()
    table.save(folder / "names.safetensors")
    BoxTable.open(folder / "names.safetensors").check(fingerprint, len(source))
    seconds = time.perf_counter() - begin
    yield seconds_row("table saved, opened and checked", names, seconds, memory().rss - before)
    shutil.rmtree(root)


def make_names(root: Path, names: int) -> Path:
    """Folders of a thousand names each, which are links to one image per folder."""
    for at in range(0, names, 1000):
        parent = root / f"n{at:08d}"
        parent.mkdir(parents=True)
        first = parent / f"n{at:08d}_{at:08d}.JPEG"
        Image.effect_noise((8, 8), 64.0).convert("RGB").save(first)
        for number in range(at + 1, min(at + 1000, names)):
            os.link(first, parent / f"n{at:08d}_{number:08d}.JPEG")
    return root


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """This process's resident memory, sampled every 50 ms while the block runs."""
    samples, ended, process = [0], threading.Event(), psutil.Process()

    def sample() -> None:
        while not ended.wait(0.05):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def seconds_row(name: str, images: int, seconds: float, grown: int) -> Row:
    """A row against the target of 30 s."""
    row: Row = {"name": f"{name}, {images} images", "seconds": seconds, "limit": 30.0, "against": "the target"}
    return row | {"ratio": 30.0 / seconds, "memory_growth_bytes": grown}
