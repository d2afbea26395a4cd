"""``profile att``: the attention pass beside the bare forward loop, and what else a rebuild of D^att takes."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saga_fast.activations import activations
from saga_fast.attention import boxes_of_batch
from saga_fast.compiled_encoder import chosen_forward, compiled, encoders_of
from saga_fast.loaders import Batch, BoxTable, Loader
from saga_fast.methods import Method
from saga_fast.precision import autocast, normalized
from saga_fast.profile.figures import Row, time_pairs
from saga_fast.profile.measure import Measured, batches, measure

ROUNDS = 3
"""The loader, the forward loop and the attention pass take turns this often; each figure is the median round's."""
LIMITS = {"eager_forward": "forward", "forward": "network", "attention_pass": "forward"}


@dataclass(frozen=True, kw_only=True)
class AttProfile:
    """What to measure: a model, and a sequential loader of whole images for it.

    Attributes:
        looking: how it looks at them, :attr:`saga_fast.train.config.TrainConfig.looking`.
        images: of the rebuild to be predicted, which decides whether its forward pass is compiled.
        seconds: per stage.
    """

    model: Method
    loader: Loader
    looking: Mapping[str, Any]
    images: int
    seconds: float = 10.0


def profile_att(profile: AttProfile) -> Iterator[Row]:
    """Rows ``decode`` (the loader alone), ``upload`` (on a GPU), ``forward`` (the bare loop), ``attention_pass``,
    ``network`` (the forward pass of one batch in memory again and again), ``start`` (the loader's first batch) and
    ``write``. Where the forward pass is compiled, also ``eager_forward`` and ``compile``.

    The limit of ``attention_pass`` is ``forward``: same loader, same encoder, nothing done with the features.
    """
    model, loader, looking = profile.model.eval(), profile.loader, dict(profile.looking)
    device = next(model.parameters()).device
    size, passes = loader.plan.size, profile.images * (2 if looking["mirror"] else 1)
    is_compiled = chosen_forward(looking.pop("forward"), model, images=passes, size=size) == "compiled"
    first, eager = next(iter(loader)), copy.deepcopy(model)

    @torch.no_grad()
    def forward(batch: Batch, model: Method = model) -> None:
        images = normalized(batch.views, model.encoder, device, channels_last=looking["channels_last"])[:, 0]
        with autocast(device, looking["precision"]):
            for branch in model.branches(images):
                activations(branch.encoder, branch.images, mirror=looking["mirror"])

    def attend(batch: Batch) -> None:
        for column in boxes_of_batch(model, batch, size=size, **looking):
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
    if is_compiled:
        stages["eager_forward"] = _synchronised(batches(loader, lambda batch: forward(batch, eager)), device)
    if device.type == "cuda":

        def upload() -> Iterable[int]:
            first.views.to(device, non_blocking=True)
            _wait(device)
            yield len(first.index)

        stages["upload"] = upload
    rounds: dict[str, list[Measured]] = {name: [] for name in stages}
    running: AbstractContextManager[None] = nullcontext()
    if is_compiled:
        running = compiled(encoders_of(model, size), batch_size=len(first.index), precision=looking["precision"])
    with running:
        compiling = _first_call(lambda: forward(first)) if is_compiled else 0.0
        for _ in range(ROUNDS):
            for name, epoch in stages.items():
                rounds[name].append(measure(epoch, seconds=profile.seconds / ROUNDS, warmup=2))
    median = {name: sorted(some, key=lambda m: m.images_per_second)[ROUNDS // 2] for name, some in rounds.items()}
    for name, measured in median.items():
        limit = LIMITS.get(name, name)
        # Of the median round's own neighbours in time.
        at = rounds[name].index(measured)
        yield measured.row(name, limit=rounds[limit][at].images_per_second, against=limit)
    if is_compiled:
        rates = [median[name].images_per_second for name in ("eager_forward", "forward")]
        yield _compile(compiling, *rates, images=profile.images)
    yield _start(loader)
    yield _write(len(loader.source))


def _first_call(function: Callable[[], object]) -> float:
    """Seconds that a function takes more when it is called for the first time."""
    marks = [time.perf_counter()]
    for _ in range(2):
        function()
        marks.append(time.perf_counter())
    return max(2.0 * marks[1] - marks[0] - marks[2], 0.0)


def _compile(seconds: float, eager: float, fast: float, *, images: int) -> Row:
    """What compiling takes, beside what it saves in a rebuild; ``breaks_even`` is the number of images that pay for it,
    None where it is not the faster one."""
    saved = images / eager - images / fast
    row: Row = {"name": "compile", "seconds": seconds, "limit": saved, "against": "the time that it saves"}
    return row | {
        "ratio": saved / max(seconds, 1e-9),
        "breaks_even": round(seconds * images / saved) if saved > 0 else None,
    }


def _start(loader: Loader) -> Row:
    """From asking for the first batch to its coming, when nothing is decoded ahead."""
    taken = []
    for _ in range(ROUNDS):
        begin, stream = time.perf_counter(), iter(loader)
        next(stream)
        taken.append(time.perf_counter() - begin)
        del stream
    seconds = sorted(taken)[ROUNDS // 2]
    return {"name": "start", "seconds": seconds, "limit": seconds, "against": "itself", "ratio": 1.0}


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
