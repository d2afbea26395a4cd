"""``profile att``: the attention pass beside the bare forward loop, and how long a rebuild of D^att will take."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saga_fast.attention import AttentionConfig, boxes_of_batch
from saga_fast.loaders import Batch, BoxTable, Loader
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast, normalized
from saga_fast.profile.figures import Row, time_pairs
from saga_fast.profile.measure import Measured, batches, measure

ROUNDS = 3
"""The loader, the forward loop and the attention pass take turns this often; each figure is the median round's."""


@dataclass(frozen=True, kw_only=True)
class AttProfile:
    """What to measure: a model and a sequential loader of whole images for it."""

    model: Method
    loader: Loader
    attention: AttentionConfig
    precision: Precision = "fp32"
    channels_last: bool = False
    seconds: float = 10.0
    """Per stage."""


def profile_att(profile: AttProfile) -> Iterator[Row]:
    """Rows ``decode`` (the loader alone), ``upload`` (on a GPU), ``forward`` (the bare loop), ``attention_pass``,
    ``network`` (the forward pass of one batch in memory again and again) and ``write``.

    The limit of ``attention_pass`` is ``forward``: same loader, same encoder, nothing done with the features.
    """
    model, loader, device = profile.model.eval(), profile.loader, next(profile.model.parameters()).device
    config, first = profile.attention, next(iter(loader))

    @torch.no_grad()
    def forward(batch: Batch) -> None:
        images = normalized(batch.views, model.encoder, device, channels_last=profile.channels_last)[:, 0]
        with autocast(device, profile.precision):
            for branch in model.branches(images):
                branch.encoder.features(branch.images)

    def attend(batch: Batch) -> None:
        found = boxes_of_batch(
            model,
            batch,
            delta=config.delta,
            size=loader.plan.size,
            normalize=config.normalize,
            score=config.score,
            mirror=config.mirror,
            precision=profile.precision,
            channels_last=profile.channels_last,
        )
        for column in found:
            column.cpu()

    def network() -> Iterable[int]:
        forward(first)
        _wait(device)
        yield len(first.index)

    stages: dict[str, Callable[[], Iterable[int]]] = {
        "decode": batches(loader),
        "forward": _synchronised(batches(loader, forward), device),
        "attention_pass": _synchronised(batches(loader, attend), device),
        "network": network,
    }
    if device.type == "cuda":

        def upload() -> Iterable[int]:
            first.views.to(device, non_blocking=True)
            _wait(device)
            yield len(first.index)

        stages["upload"] = upload
    rounds: dict[str, list[Measured]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, epoch in stages.items():
            rounds[name].append(measure(epoch, seconds=profile.seconds / ROUNDS, warmup=2))
    median = {name: sorted(some, key=lambda m: m.images_per_second)[ROUNDS // 2] for name, some in rounds.items()}
    limits = {"decode": "decode", "upload": "upload", "forward": "network", "attention_pass": "forward"}
    for name, measured in median.items():
        limit = limits.get(name, name)
        # Of the median round's own neighbours in time.
        at = rounds[name].index(measured)
        yield measured.row(name, limit=rounds[limit][at].images_per_second, against=limit)
    yield _write(len(loader.source))


@dataclass(frozen=True)
class Prediction:
    """How long a rebuild takes."""

    seconds: float
    bottleneck: str
    images_per_second: float


def predict(rows: Sequence[Row], *, images: int, gpus: int, on_gpu: bool) -> Prediction:
    """The time of a rebuild from measured rates.

    The stages overlap, so the slowest sets the rate. On a GPU the network's rate grows with their number, while one
    machine's loader feeds them all; without one, a pass is all on the processor, and ``gpus`` counts machines.

    Args:
        rows: of :func:`profile_att`.
        images: images of the data set.
        gpus: GPUs of the machine.
        on_gpu: whether the rows were measured on one.
    """
    rate = {row["name"]: row["images_per_second"] for row in rows if "images_per_second" in row}
    write = next(row for row in rows if row["name"] == "write")
    if on_gpu:
        # What the pass takes beyond the forward loop is the GPU's work too.
        network = gpus * rate["network"] * min(rate["attention_pass"] / rate["forward"], 1.0)
        stages = {"decode": rate["decode"], "network": network, "upload": gpus * rate["upload"]}
    else:
        stages = {"the processor, which decodes and computes": gpus * rate["attention_pass"]}
    bottleneck = min(stages, key=lambda name: stages[name])
    writing = write["seconds"] * images / write["images"]
    return Prediction(images / stages[bottleneck] + writing, bottleneck, stages[bottleneck])


def _synchronised(epoch: Callable[[], Iterable[int]], device: torch.device) -> Callable[[], Iterable[int]]:
    """Waits for the GPU at an epoch's end, and every few batches, so that a rate counts finished work."""

    def synchronised() -> Iterable[int]:
        for number, count in enumerate(epoch()):
            if number % 4 == 3:
                _wait(device)
            yield count
        _wait(device)

    return synchronised


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _write(images: int) -> Row:
    """Saving a table of ``images`` rows, fsync and all, beside writing as many bytes."""
    table = BoxTable.whole(images)
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "table.safetensors", Path(folder) / "plain"
        table.save(path)
        content = path.read_bytes()
        seconds = time_pairs(
            {"table": lambda: table.save(path), "bytes": lambda: plain.write_bytes(content)}, repeats=ROUNDS
        )
    own, limit = (float(sorted(seconds[name])[ROUNDS // 2]) for name in ("table", "bytes"))
    return {
        "name": "write",
        "seconds": own,
        "limit": limit,
        "against": "writing as many bytes",
        "ratio": limit / own,
        "images": images,
    }
