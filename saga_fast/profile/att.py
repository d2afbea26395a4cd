"""``profile att``: the stages of a rebuild of D^att, and the attention pass compared with its limit."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from saga_fast.attention import AttentionPass
from saga_fast.attention.build import boxes_of_batch
from saga_fast.attention.heatmap import image_activations
from saga_fast.loaders import Batch, BoxTable, Loader
from saga_fast.methods import Method
from saga_fast.models.compiled_features import choose_forward, compiled_features
from saga_fast.models.precision import autocast, normalize_views
from saga_fast.profile.figures import Row, time_pairs
from saga_fast.profile.measure import Epoch, Measured, batches, measure

ROUNDS = 3
"""The stages take turns for this many rounds; each figure is that of the median round."""
LIMITS = {"eager_forward": "forward", "forward": "network", "attention_pass": "forward"}


@dataclass(frozen=True, kw_only=True)
class AttProfile:
    """What to measure: a model, and a sequential loader of whole images for it.

    Attributes:
        attention_pass: the options of the pass.
        images: number of images of the predicted rebuild, which decides whether the forward pass is compiled.
        seconds: per stage.
    """

    model: Method
    loader: Loader
    attention_pass: AttentionPass
    images: int
    seconds: float = 10.0

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device


class _Forward:
    """The bare forward loop: h of a batch, without boxes."""

    def __init__(self, profile: AttProfile, model: Method) -> None:
        self._model, self._options, self._device = model, profile.attention_pass, profile.device

    @torch.no_grad()
    def __call__(self, batch: Batch) -> None:
        model, options = self._model, self._options
        images = normalize_views(
            batch.views, model.encoder, self._device, channels_last=options.channels_last, precision=options.precision
        )[:, 0]
        with autocast(self._device, options.precision):
            for branch in model.branches(images):
                for activations in image_activations(branch.encoder, branch.images, mirror=options.mirror):
                    branch.encoder.pool(*activations)


def profile_att(profile: AttProfile) -> Iterator[Row]:
    """One row per stage of the attention pass, measured in turn.

    - ``decode``: the loader alone
    - ``upload``: the copy of a batch to the GPU; only on a GPU
    - ``forward``: loader and forward pass, without boxes
    - ``attention_pass``: the whole pass; its limit is ``forward``, which has the same loader and encoder
    - ``network``: the forward pass of one batch in memory, repeated
    - ``eager_forward``, ``compile``: the uncompiled forward loop, and the time to compile; only if the forward pass is
      compiled
    - ``start``: the loader's first batch
    - ``write``: saving the table
    """
    model, loader, options = profile.model.eval(), profile.loader, profile.attention_pass
    passes = profile.images * (2 if options.mirror else 1)
    forward_kind = choose_forward(options.forward, model.encoders, images=passes, size=loader.plan.size)
    is_compiled = forward_kind == "compiled"
    first = next(iter(loader))
    forward = _Forward(profile, model)
    eager = _Forward(profile, copy.deepcopy(model)) if is_compiled else None
    stages = _stages(profile, first, forward, eager)
    context: AbstractContextManager[None] = nullcontext()
    if is_compiled:
        context = compiled_features(model.encoders, batch_size=len(first.index), precision=options.precision)
    with context:
        compile_seconds = _first_call_overhead(lambda: forward(first)) if is_compiled else 0.0
        rounds = _measure_rounds(stages, seconds=profile.seconds / ROUNDS)
    rates = {}
    for name, measured in rounds.items():
        median = sorted(measured, key=lambda m: m.images_per_second)[ROUNDS // 2]
        rates[name] = median.images_per_second
        limit = LIMITS.get(name, name)
        # The limit of the same round, measured closest in time.
        limit_rate = rounds[limit][measured.index(median)].images_per_second
        yield median.row(name, limit=limit_rate, against=limit)
    if is_compiled:
        yield _compile_row(compile_seconds, rates["eager_forward"], rates["forward"], images=profile.images)
    yield _start_row(loader)
    yield _write_row(len(loader.source))


def _stages(profile: AttProfile, first: Batch, forward: _Forward, eager: _Forward | None) -> dict[str, Epoch]:
    """The stages that take turns; ``first`` is the batch of ``network`` and ``upload``."""
    model, loader, device = profile.model, profile.loader, profile.device

    def attend(batch: Batch) -> None:
        for column in boxes_of_batch(model, batch, profile.attention_pass):
            column.cpu()

    def network() -> Iterable[int]:
        forward(first)
        _wait(device)
        yield len(first.index)

    def upload() -> Iterable[int]:
        first.views.to(device, non_blocking=True)
        _wait(device)
        yield len(first.index)

    stages: dict[str, Epoch] = {
        "decode": batches(loader),
        "forward": _synchronised(batches(loader, forward), device),
        "attention_pass": _synchronised(batches(loader, attend), device),
        "network": network,
    }
    if eager is not None:
        stages["eager_forward"] = _synchronised(batches(loader, eager), device)
    if device.type == "cuda":
        stages["upload"] = upload
    return stages


def _measure_rounds(stages: dict[str, Epoch], *, seconds: float) -> dict[str, list[Measured]]:
    """The figures of each stage in each round; the stages take turns."""
    rounds: dict[str, list[Measured]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, epoch in stages.items():
            rounds[name].append(measure(epoch, seconds=seconds, warmup=2))
    return rounds


def _first_call_overhead(function: Callable[[], object]) -> float:
    """How many seconds the first call of a function takes more than the second."""
    marks = [time.perf_counter()]
    for _ in range(2):
        function()
        marks.append(time.perf_counter())
    return max(2.0 * marks[1] - marks[0] - marks[2], 0.0)


def _compile_row(seconds: float, eager: float, compiled: float, *, images: int) -> Row:
    """The time to compile, compared with the time that it saves in a rebuild.

    ``breaks_even`` is the number of images that a rebuild needs to save as much, None if compiled is not faster.

    Args:
        seconds: the time to compile.
        eager, compiled: rates of the two forward loops, images/s.
        images: number of images of the rebuild.
    """
    saved = images / eager - images / compiled
    row: Row = {"name": "compile", "seconds": seconds, "limit": saved, "against": "the time that it saves"}
    return row | {
        "ratio": saved / max(seconds, 1e-9),
        "breaks_even": round(seconds * images / saved) if saved > 0 else None,
    }


def _start_row(loader: Loader) -> Row:
    """The time from the loader's start to its first batch."""
    timings = []
    for _ in range(ROUNDS):
        begin, stream = time.perf_counter(), iter(loader)
        next(stream)
        timings.append(time.perf_counter() - begin)
        del stream
    seconds = sorted(timings)[ROUNDS // 2]
    return {"name": "start", "seconds": seconds, "limit": seconds, "against": "itself", "ratio": 1.0}


def _synchronised(epoch: Epoch, device: torch.device) -> Epoch:
    """The same epoch, waiting for the GPU at every fourth batch and at its end.

    Without that, a rate would count work that is only queued.
    """

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


def _write_row(images: int) -> Row:
    """The time to save a table of ``images`` rows with fsync, compared with writing as many bytes."""
    table = BoxTable.whole(images)
    with tempfile.TemporaryDirectory() as folder:
        path, plain = Path(folder) / "table.safetensors", Path(folder) / "plain"
        table.save(path)
        content = path.read_bytes()
        timings = time_pairs(
            {"table": lambda: table.save(path), "bytes": lambda: plain.write_bytes(content)}, repeats=ROUNDS
        )
    seconds, limit = (float(sorted(timings[name])[ROUNDS // 2]) for name in ("table", "bytes"))
    return {
        "name": "write",
        "seconds": seconds,
        "limit": limit,
        "against": "writing as many bytes",
        "ratio": limit / seconds,
        "images": images,
    }
