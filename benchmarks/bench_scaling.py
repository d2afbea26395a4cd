"""build-att in one process and in two: wall time, and the memory that the processes hold at most.

    python benchmarks/bench_scaling.py --out benchmarks/results/bench_scaling.json

Each command starts afresh, imports and all, with one thread per process for the network and one for decoding, so that
two processes have twice the cores. The first of each pair is a warm-up; commands take turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from saga_fast.demo_data import DemoDataConfig, make_demo_data
from saga_fast.loaders import BoxTable
from saga_fast.profile.figures import Row, line, write
from saga_fast.train.config import config_from_dict
from saga_fast.train.cycle import train


def checkpoint(folder: Path, images: int) -> Path:
    """A resnet18 that has seen a few images, and images for it to look at."""
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


def build(arguments: Sequence[str], processes: int) -> tuple[float, int]:
    """Seconds of the command, and the most memory that its processes held together (proportional set size), bytes."""
    module = ["-m", "saga_fast", "build-att", *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
    command = [sys.executable, *([*launcher, sys.executable] if processes > 1 else []), *module]
    begin = time.perf_counter()
    with subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        peaks = [0]
        watcher = threading.Thread(target=_watch, args=(process, peaks))
        watcher.start()
        status = process.wait()
        seconds = time.perf_counter() - begin
        watcher.join()
    if status:
        raise RuntimeError(f"build-att in {processes} processes ended with {status}")
    return seconds, max(peaks)


def _watch(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    while process.poll() is None:
        try:
            parent = psutil.Process(process.pid)
            every = [parent, *parent.children(recursive=True)]
            peaks.append(sum(each.memory_full_info().pss for each in every))
        except (psutil.Error, OSError):
            pass  # one of them has just ended
        time.sleep(0.2)


def main() -> None:
    """Measure, compare the tables and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ckpt = checkpoint(folder, options.images)
        measured: dict[int, list[tuple[float, int]]] = {1: [], 2: []}
        for _ in range(options.repeats + 1):
            for processes, found in measured.items():
                out = folder / f"att{processes}.safetensors"
                arguments = ["--ckpt", str(ckpt), "--data", str(folder / "data" / "train"), "--out", str(out)]
                found.append(build([*arguments, "--threads", "1"], processes))
        tables = [BoxTable.open(folder / f"att{processes}.safetensors") for processes in measured]
        equal = all(
            np.array_equal(getattr(tables[0], column), getattr(tables[1], column))
            for column in ("boxes", "found", "pseudo_label", "score")
        )
        alone = float(np.median([seconds for seconds, _ in measured[1][1:]]))
        for processes, found in measured.items():
            seconds = float(np.median([each for each, _ in found[1:]]))
            memory = int(np.median([peak for _, peak in found[1:]]))
            facts = {"images": options.images, "processes": processes, "equal_tables": equal}
            plural = "es" if processes > 1 else ""
            rows.append(
                {"name": f"build-att, {processes} process{plural}", "seconds": seconds, "limit": alone / processes}
                | {"ratio": alone / processes / seconds, "against": "one process over their number", **facts}
            )
            rows.append(
                {"name": f"memory, {processes} process{plural}", "bytes": memory, "limit": memory, "ratio": 1.0}
                | {"against": "itself", **facts}
            )
    for row in rows:
        print(line(row))
    if options.out:
        write(options.out, rows)


if __name__ == "__main__":
    main()
