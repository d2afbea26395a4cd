"""``build_box_table`` on batches that are in the device's memory, next to the bare forward pass of the same batches.

The clock runs from the third batch to the end of the call, so that neither compiling nor the first launches count.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from benchmarks.gpu_checks import verdict
from benchmarks.gpu_models import build
from benchmarks.gpu_product import not_on_cpu
from benchmarks.gpu_ready import ReadyLoader
from benchmarks.gpu_timing import Bench
from benchmarks.kernel_peers import pictures
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.loaders import BoxTable, WholePlan
from saga_fast.loaders.upload import upload_ahead
from saga_fast.methods import Method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.compiled_features import compiled_features
from saga_fast.models.precision import Precision, autocast, normalize_views
from saga_fast.profile.figures import Row, Seconds, compare

Forward = Literal["eager", "compiled"]
TARGET = 0.97
"""Of the bare forward pass's rate."""
SKIP = 2
"""Batches before the clock starts."""
NEAR = 1e-3
"""The last map of a whole network differs by less, of its range, between a GPU and a CPU in float32."""
REBUILD = 240.0
"""Seconds of a rebuild of ImageNet's D^att on one H100: the target."""


@dataclass(frozen=True)
class Pass:
    """One way to run the attention pass: its number format, its forward pass, and the images per batch."""

    precision: Precision
    forward: Forward
    batch: int

    @property
    def name(self) -> str:
        """As in the rows."""
        return f"{self.precision}, {self.forward}, batch {self.batch}"


def ready_loader(bench: Bench, batch: int, *, images: int, skip: int = SKIP) -> ReadyLoader:
    """Random whole images on the device, (batch, 1, S, S, 3) uint8: four batches that take turns."""
    side = 64 if bench.small else 224
    stored = [
        [torch.randint(256, (batch, 1, side, side, 3), dtype=torch.uint8, device=bench.device)]
        for _ in range(2 if bench.small else 4)
    ]
    return ReadyLoader(stored, count=images // batch + skip, plan=WholePlan(size=side), skip=skip)


def pass_options(way: Pass, loader: ReadyLoader) -> AttentionPass:
    """The product's options of a pass."""
    return AttentionPass(size=loader.plan.size, precision=way.precision, channels_last=True, forward=way.forward)


def pass_seconds(model: Method, loader: ReadyLoader, options: AttentionPass) -> tuple[float, float]:
    """Seconds per image of ``build_box_table``, and seconds before its clock starts."""
    start = time.perf_counter()
    build_box_table(model, loader, options)  # its end waits for the device
    return (time.perf_counter() - loader.begin) / loader.timed, loader.begin - start


def forward_seconds(bench: Bench, model: Method, loader: ReadyLoader, precision: Precision) -> float:
    """Seconds per image of the bare forward pass, from the same uint8 views."""
    with torch.no_grad():
        for batch in upload_ahead(loader, bench.device):
            images = normalize_views(batch.views, model.encoder, bench.device, channels_last=True, precision=precision)[
                :, 0
            ]
            with autocast(bench.device, precision):
                model.encoder.features(images)
    if bench.cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - loader.begin) / loader.timed


def time_way(bench: Bench, model: Method, way: Pass) -> Row:
    """The pass against the bare forward pass; a compiled pass is made once, because each call compiles again."""
    bench.check_time()
    images = 2 * way.batch if bench.small else (8192 if way.precision == "bf16" else 3072)
    loader = ready_loader(bench, way.batch, images=images)
    options, compiled = pass_options(way, loader), way.forward == "compiled"
    repeats = 1 if compiled or bench.small else 4
    if not compiled:
        pass_seconds(model, loader, options)
    ours, bare, starting = np.empty(repeats), np.empty(repeats), 0.0
    compiling = compiled_features(model.encoders, batch_size=way.batch, precision=way.precision)
    for i in range(repeats):
        ours[i], starting = pass_seconds(model, loader, options)
        with compiling if compiled else nullcontext():
            runs = 3 if compiled else 1  # within one compilation they cost little
            bare[i] = np.median([forward_seconds(bench, model, loader, way.precision) for _ in range(runs)])
    facts: Row = {"batch": way.batch, "side": loader.plan.size, "target": TARGET, "network": encoder_name(bench)}
    if way.precision == "fp32":
        facts["tf32"] = torch.backends.cudnn.allow_tf32
    if compiled:
        facts["seconds_to_compile_with_kernels_on_disk"] = starting
    return row_of_rates(f"build_box_table, ready batches, {way.name}", ours, bare) | facts


def row_of_rates(name: str, ours: Seconds, bare: Seconds) -> Row:
    """A row in images/s from seconds per image."""
    return compare(name, ours, bare, against="bare forward, ready batches", images=1)


def encoder_name(bench: Bench) -> str:
    """The network."""
    return "tiny resnet18" if bench.small else "resnet50"


def time_boxes(bench: Bench) -> Iterator[Row]:
    """The passes, the most usual first, and the boxes against those of the CPU."""
    model = build(bench, SimCLRConfig()).eval()
    usual, large = (4, [8]) if bench.small else (256, [512, 1024])
    yield time_way(bench, model, Pass("bf16", "eager", usual))
    yield compare_with_cpu(bench, model)
    yield time_way(bench, model, Pass("fp32", "eager", usual))
    if bench.cuda:
        yield time_way(bench, model, Pass("bf16", "compiled", usual))
    for batch in large:
        yield time_way(bench, model, Pass("bf16", "eager", batch))
    if bench.cuda:
        yield time_way(bench, model, Pass("fp32", "compiled", usual))


def compare_with_cpu(bench: Bench, model: Method) -> Row:
    """Boxes in float32 without TF32 against those of the CPU, except where rounding decides.

    Rounding decides an image whose box on the CPU changes when delta changes by NEAR, and one whose pseudo label
    differs, of which the row has the numbers.
    """
    images, side = (4, 64) if bench.small else (64, 224)
    views = torch.from_numpy(pictures(images, side, side))[:, None]
    stored = [[views[: images // 2]], [views[images // 2 :]]]
    options = AttentionPass(size=side, forward="eager")

    def table(device: torch.device, delta: float) -> BoxTable:
        loader = ReadyLoader([[x.to(device) for x in each] for each in stored], count=2, plan=WholePlan(size=side))
        return build_box_table(copy.deepcopy(model).to(device), loader, replace(options, delta=delta))

    cpu = torch.device("cpu")
    with full_float32():
        ours = table(bench.device, options.delta)
        expected, *moved = (table(cpu, options.delta + shift) for shift in (0.0, -NEAR, NEAR))
    decided = np.all([(expected.boxes == other.boxes).all(1) for other in moved], axis=0)
    labels = ours.pseudo_label != expected.pseudo_label
    decided &= ~labels
    apart = np.abs(ours.boxes - expected.boxes).max(1) * side
    facts: Row = {"images": images, "undecided": int((~decided).sum()), "labels_differ": int(labels.sum())}
    facts |= {"boxes_differ": int((apart > 0.5).sum()), "network": encoder_name(bench)}
    worst = float(apart[decided].max()) if decided.any() else float("nan")
    name = f"build_box_table, fp32 without TF32, {bench.device.type} against the CPU"
    return verdict(bench, name, worst, 0.5, "pixels", facts)


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block convolutions and matrix products do not round float32 to TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def time_compiling(bench: Bench, *, precision: Precision) -> Iterator[Row]:
    """Seconds until the first compiled batch is done, without kernels on disk; other processes run at the same time."""
    if not bench.cuda:
        yield not_on_cpu(f"compiling for a pass, {precision}")
        return
    model = build(bench, SimCLRConfig()).eval()
    images = torch.randn(256, 3, 224, 224, device=bench.device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model.encoder.features(images)
        torch.cuda.synchronize()
        start = time.perf_counter()
        with compiled_features(model.encoders, batch_size=256, precision=precision):
            model.encoder.features(images)
            torch.cuda.synchronize()
    took = time.perf_counter() - start
    row: Row = {
        "name": f"compiling for a pass, {precision}",
        "seconds": took,
        "limit": REBUILD,
        "ratio": REBUILD / took,
    }
    yield row | {"against": "the target of a whole rebuild", "network": encoder_name(bench)}
