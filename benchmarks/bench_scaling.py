"""build-att in one process and in two: wall time, and the peak memory of the processes together.

Each command starts afresh, imports and all, with one thread per process for the network and one for decoding, so that
two processes have twice the cores. The first of each kind is a warm-up; the kinds take turns.

Run it as ``PYTHONPATH=. python benchmarks/bench_scaling.py --out FILE``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.scaffold import benchmark_parser, record
from saga_fast.attention.parts import COLUMNS
from saga_fast.config_file import config_from_dict
from saga_fast.demo.data import make_demo_data
from saga_fast.loaders import BoxTable
from saga_fast.loaders.config import DemoDataConfig
from saga_fast.profile.figures import Row
from saga_fast.train.cycle import train


def make_checkpoint(folder: Path, images: int) -> Path:
    """A ResNet-18 trained on 100 demo images, and in ``folder/data/train`` the images for its attention pass."""
    make_demo_data(folder / "data", DemoDataConfig(num_train=images, num_val=100))
    config = config_from_dict(
        {
            "out": str(folder / "run"),
            "method": {"name": "mocov2", "queue_size": 64},
            "encoder": {"name": "resnet18", "stem": "medium"},
            "data": {"train": str(folder / "data" / "val")},
            "crop": {"size": 96},
            "batch_size": 64,
            "plain": {"epochs": 1},
            "attention": None,
            "evaluate": None,
        },
        where="bench_scaling",
    )
    return train(config)


def run_build_att(arguments: Sequence[str], processes: int) -> tuple[float, int]:
    """The command's seconds, and the peak memory of its processes together (proportional set size), bytes.

    Raises:
        RuntimeError: it failed.
    """
    module = ["-m", "saga_fast", "build-att", *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
    command = [sys.executable, *([*launcher, sys.executable] if processes > 1 else []), *module]
    environment, quiet = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.DEVNULL
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        samples = [0]
        sampler = threading.Thread(target=_sample_memory, args=(process, samples))
        sampler.start()
        status = process.wait()
        seconds = time.perf_counter() - begin
        sampler.join()
    if status:
        raise RuntimeError(f"build-att in {processes} processes ended with {status}")
    return seconds, max(samples)


def _sample_memory(process: subprocess.Popen[bytes], samples: list[int]) -> None:
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
            samples.append(sum(each.memory_full_info().pss for each in family))
        except (psutil.Error, OSError):
            pass  # one of them has just ended
        time.sleep(0.2)


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Time and memory for one process and for two."""
    ckpt = make_checkpoint(folder, options.images)
    measured: dict[int, list[tuple[float, int]]] = {1: [], 2: []}
    for _ in range(options.repeats + 1):
        for processes, runs in measured.items():
            out = folder / f"att{processes}.safetensors"
            arguments = ["--ckpt", str(ckpt), "--data", str(folder / "data" / "train"), "--out", str(out)]
            runs.append(run_build_att([*arguments, "--threads", "1"], processes))
    first, second = (BoxTable.open(folder / f"att{processes}.safetensors") for processes in measured)
    equal = all(np.array_equal(getattr(first, column), getattr(second, column)) for column in COLUMNS)
    alone = float(np.median([seconds for seconds, _ in measured[1][1:]]))
    for processes, runs in measured.items():
        seconds, memory = (float(value) for value in np.median(np.array(runs[1:]), axis=0))
        facts: Row = {"images": options.images, "processes": processes, "equal_tables": equal}
        count = f"{processes} process{'es' if processes > 1 else ''}"
        limit = alone / processes
        row: Row = {"name": f"build-att, {count}", "seconds": seconds, "limit": limit, "ratio": limit / seconds}
        yield row | {"against": "one process over their number"} | facts
        row = {"name": f"memory, {count}", "bytes": int(memory), "limit": int(memory), "ratio": 1.0}
        yield row | {"against": "itself"} | facts


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        record(options.out, rows(options, Path(name)))


if __name__ == "__main__":
    main()
