"""Host synchronisations of the training loop and of the attention pass, and the memory of 20 epochs of each engine.

A host that waits for the device cannot launch ahead, so neither loop should wait for each batch.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from benchmarks.gpu_boxes import Pass, pass_options, ready_loader
from benchmarks.gpu_methods import method_config, ready_batch, training_of
from benchmarks.gpu_models import build
from benchmarks.gpu_product import KEY, engines, image_folder, open_engine
from benchmarks.gpu_ready import ReadyLoader
from benchmarks.gpu_timing import Bench, cuda
from saga_fast.attention import build_box_table
from saga_fast.loaders import CropPlan
from saga_fast.methods import METHODS
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.precision import Precision
from saga_fast.profile.figures import Row
from saga_fast.train.epoch import EpochPosition, train_epoch
from saga_fast.train.plan import crop_plan

FEW, MANY = 4, 12
"""Batches of two runs: their difference leaves out what happens once."""
EPOCHS, SETTLED = 20, 5
"""Epochs of the memory test, and the one after which memory should not grow; with ``--small`` a fifth of both."""


@contextmanager
def recorded_syncs(bench: Bench) -> Iterator[Counter[str]]:
    """The places in the code that made the host wait for the device, with their numbers, once the block ends."""
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if bench.cuda:
            torch.cuda.synchronize()
            cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if bench.cuda:
                cuda.set_sync_debug_mode("default")
    for each in caught:
        if "called a synchronizing" in str(each.message):
            places[f"{'/'.join(Path(each.filename).parts[-3:])}:{each.lineno}"] += 1


def row_of_syncs(bench: Bench, name: str, run: Callable[[int], object]) -> Row:
    """The synchronisations per batch of a loop over that many batches."""
    bench.check_time()
    run(FEW)
    counts = []
    for batches in (FEW, MANY):
        with recorded_syncs(bench) as places:
            run(batches)
        counts.append(places)
    more = {place: (counts[1][place] - counts[0][place]) / (MANY - FEW) for place in counts[1]}
    once = {place: count for place, count in counts[0].items() if not more.get(place)}
    more = {place: count for place, count in more.items() if count}
    each = sum(more.values())
    row: Row = {"name": f"host synchronisations, {name}", "deviation": each, "limit": 0.5, "against": "half per batch"}
    return row | {"ratio": 0.5 / max(each, 5e-4), "target": 1.0, "per_batch": more, "once": once}


def count_syncs(bench: Bench) -> Iterator[Row]:
    """A training epoch of each method, and the attention pass."""
    precision: Precision = "bf16" if bench.cuda else "fp32"
    model = build(bench, SimCLRConfig()).eval()
    batch = 4 if bench.small else 64

    def attention(batches: int) -> None:
        loader = ready_loader(bench, batch, images=batches * batch, skip=0)
        build_box_table(model, loader, pass_options(Pass(precision, "eager", batch), loader))

    yield row_of_syncs(bench, f"build_box_table, {precision}", attention)
    for name in [name for name, kind in METHODS.items() if kind.contrastive]:
        training = training_of(bench, method_config(bench, name), precision)
        training = replace(training, config=replace(training.config, batch_size=8 if bench.small else 32))
        stored = ready_batch(bench, training)
        plan = crop_plan(training.config, training.model)

        def epoch(batches: int) -> None:
            loader = ReadyLoader([[stored.views, *stored.more]], count=batches, plan=plan)  # noqa: B023
            phase = replace(training.config.plain, epochs=1, warmup_epochs=0, lr=1e-3)  # noqa: B023
            train_epoch(training, loader, EpochPosition(epoch=0, phase=phase, phase_epoch=0))  # noqa: B023

        yield row_of_syncs(bench, f"training step, {name}, {precision}", epoch)


def measure_memory(bench: Bench) -> Iterator[Row]:
    """Host, page-locked and device memory of each engine after EPOCHS epochs, against those after SETTLED."""
    with tempfile.TemporaryDirectory() as folder:
        root = image_folder(bench, Path(folder), copies=2)
        for key in engines(bench):
            yield from _memory_of(bench, root, key)


def _memory_of(bench: Bench, root: Path, key: KEY) -> Iterator[Row]:
    epochs, settling = (EPOCHS // 5, SETTLED // 5) if bench.small else (EPOCHS, SETTLED)
    name = f"{epochs} epochs of engine {key[0]}, decode {key[1]}, crop {key[2]}"
    settled: dict[str, int] = {}
    now: dict[str, int] = {}
    try:
        loader = open_engine(bench, root, key, CropPlan(size=32 if bench.small else 224, seed=bench.seed))
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for _ in loader:
                pass
            now = memory_in_use(bench)
            settled = now if epoch + 1 == settling else settled
    except Exception as error:  # an engine that is missing or fails must not hide the others
        yield {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        return
    for kind, size in now.items():
        row: Row = {"name": f"{kind} memory after {name}", "bytes": size, "limit": settled[kind]}
        yield row | {"against": f"after {settling}", "ratio": (settled[kind] + 1) / (size + 1)}


def memory_in_use(bench: Bench) -> dict[str, int]:
    """Bytes of this process on the host and, on a GPU, of torch's device and page-locked memory."""
    gc.collect()
    sizes = {"host": psutil.Process().memory_info().rss}
    if bench.cuda:
        torch.cuda.synchronize()
        sizes |= {"device": torch.cuda.memory_allocated(), "reserved device": torch.cuda.memory_reserved()}
        locked = cuda.host_memory_stats()  # an empty one before the first page-locked allocation
        sizes |= {"page-locked": locked["allocated_bytes.current"]} if "allocated_bytes.current" in locked else {}
    return sizes
