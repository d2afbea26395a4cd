"""The device, the deadline and the timing by CUDA events of the sections of ``gpu.py``.

A way is a list of calls that do the same work on different inputs. They take turns, so that none has its input in the
L2 cache; :func:`rotation` is the number of inputs that this takes. A measurement is one run over the list. Work of a
few microseconds is captured into a CUDA graph, whose replays time the device without the host's launch gaps; everything
else is launched as usual, the host running ahead. On the CPU the host's clock replaces both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saga_fast.profile.figures import Row, Seconds, compare, time_pairs

Call = Callable[[], object]
cuda: Any = torch.cuda  # its events and streams are not typed


@dataclass(frozen=True)
class Way:
    """Calls on different inputs that are timed as one, ``rounds`` times in a row."""

    calls: Sequence[Call]
    rounds: int = 1
    captured: bool = False
    """Replay a CUDA graph of the calls. They must not wait for the device."""

    @property
    def count(self) -> int:
        """Calls in one measurement."""
        return len(self.calls) * self.rounds


@dataclass
class Bench:
    """One run of the benchmark."""

    device: torch.device
    small: bool
    seed: int
    deadline: float = float("inf")
    """``time.monotonic()`` at which the section's time is over."""
    dry: bool = False
    """Make each call once and measure nothing: it compiles kernels, which the run that measures finds on disk."""
    copy_rate: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def impl(self) -> str:
        """The implementation under test: Triton on a GPU and in Triton's interpreter, else Numba."""
        return "triton" if self.cuda or os.environ.get("TRITON_INTERPRET") == "1" else "numba"

    @property
    def late(self) -> bool:
        """Whether the section's time is over."""
        return time.monotonic() > self.deadline

    def check_time(self) -> None:
        """Raise ``TimeoutError`` past the deadline; called before each measurement."""
        if self.late:
            raise TimeoutError("the section's time is over")

    def put(self, array: Any) -> Tensor:
        """An array as a tensor on the device."""
        return torch.as_tensor(array).to(self.device)

    def clock(self, way: Way) -> str:
        """The clock that times a way, for its row."""
        if not self.cuda:
            return "host clock"
        return f"{'CUDA graph' if way.captured else 'CUDA events'}, {way.count} calls"

    def copy_bandwidth(self) -> float:
        """Bytes per second of a device-to-device copy, read and written ones counted; measured by the first call."""
        if not self.copy_rate:
            size = 2**22 if self.small else 2**30
            source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            way = Way([lambda: target.copy_(source)], rounds=10)
            self.copy_rate = 2 * size / float(np.median(time_ways(self, {"copy": way}, repeats=10)["copy"]))
        return self.copy_rate


def rotation(bench: Bench, size: int) -> int:
    """The number of inputs of ``size`` bytes that are four times as large as the L2 cache together, at least two."""
    if not bench.cuda:
        return 2
    cache = int(torch.cuda.get_device_properties(bench.device).L2_cache_size)
    return max(2, -(-4 * cache // size))


def time_ways(bench: Bench, ways: Mapping[str, Way], *, repeats: int, warmup: int = 1) -> dict[str, Seconds]:
    """Seconds per call, (repeats,) per way; the ways take turns. Past the deadline three repeats are enough.

    In a dry run all are 1.

    Raises:
        TimeoutError: the deadline was over at the call.
    """
    bench.check_time()
    if bench.dry:
        for way in ways.values():
            _run(replace(way, rounds=1))()
        return {name: np.ones(1) for name in ways}
    if not bench.cuda:
        runs = {name: _run(way) for name, way in ways.items()}
        seconds = time_pairs(runs, repeats=min(repeats, 2) if bench.small else repeats, warmup=warmup)
        return {name: values / ways[name].count for name, values in seconds.items()}
    prepared: dict[str, Call] = {}
    for name, way in ways.items():
        prepared[name] = _captured(way) if way.captured else _run(way)
        for _ in range(warmup):
            prepared[name]()
    begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for done in range(repeats):
        if bench.late and done >= 3:
            break
        for name, run in prepared.items():
            torch.cuda.synchronize()
            begin.record()
            run()
            end.record()
            end.synchronize()
            measured[name].append(begin.elapsed_time(end) / 1e3 / ways[name].count)
    return {name: np.array(values) for name, values in measured.items()}


def kernel_seconds(bench: Bench, way: Way) -> Seconds:
    """Seconds of a GPU's kernels per call, (1,), by torch's profiler: without what the host does between them."""
    run = _run(way)
    run()
    if bench.dry:
        return np.ones(1)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if not event.key.startswith(("Memcpy", "Memset"))]
    return np.array([sum(event.self_device_time_total for event in events) / 1e6 / way.count])


def _run(way: Way) -> Call:
    def run() -> None:
        for _ in range(way.rounds):
            for call in way.calls:
                call()

    return run


def _captured(way: Way) -> Call:
    """The way as a CUDA graph; its calls run once before, on a separate stream, as capturing requires."""
    stream = cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in way.calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _run(way)()
    replay: Call = graph.replay
    return replay


def against_bytes(bench: Bench, name: str, ours: Seconds, size: int) -> Row:
    """A row against the time in which a copy moves as many bytes, read and written ones together."""
    floor = np.full_like(ours, size / bench.copy_bandwidth())
    return compare(name, ours, floor, against="its bytes at the copy bandwidth", moved_bytes=size)


def autocast(bench: Bench) -> Any:
    """bfloat16 on the GPU; tiny networks on the CPU stay in float32, which is faster there."""
    return torch.autocast("cuda", torch.bfloat16) if bench.cuda else nullcontext()
