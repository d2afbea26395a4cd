"""What the loaders' benchmarks share: the crops, boxes, ways to drain a loader, and decoding alone."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import torch

from benchmarks.images import make_images
from saga_fast.loaders import BoxTable
from saga_fast.loaders.decode import decode_image

SCALE, RATIO = (0.2, 1.0), (3.0 / 4.0, 4.0 / 3.0)  # MoCo's RandomResizedCrop
SEED = 0


def half_side_boxes(count: int) -> BoxTable:
    """A table of boxes of half the image's side, at random places."""
    table = BoxTable.whole(count)
    table.boxes[:, :2] = np.random.default_rng(SEED).random((count, 2)) / 2
    table.boxes[:, 2:] = 0.5
    table.found[:] = True
    return table


def consume(batches: Iterable[object]) -> None:
    """Draw every batch."""
    for _ in batches:
        pass


def decode_files(paths: list[Path], threads: int) -> None:
    """Read and decode every file on ``threads`` threads and drop the pixels: the limit of any loader of these files.

    Runs of 16 files are a task, as in the folder engine.
    """

    def decode(part: list[Path]) -> None:
        for path in part:
            decode_image(path.read_bytes())

    with ThreadPoolExecutor(threads) as pool:
        consume(pool.map(decode, [paths[i : i + 16] for i in range(0, len(paths), 16)]))


def decode_bytes(contents: list[bytes], threads: int) -> None:
    """As :func:`decode_files`, with the files' contents at hand."""

    def decode(part: list[bytes]) -> None:
        for data in part:
            decode_image(data)

    with ThreadPoolExecutor(threads) as pool:
        consume(pool.map(decode, [contents[i : i + 16] for i in range(0, len(contents), 16)]))


def bind(threads: int) -> None:
    """Leave this process and its children ``threads`` cores, and its thread pools as many threads."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < threads:
            raise SystemExit(f"--threads {threads}, but this process may use {len(cores)} cores")
        os.sched_setaffinity(0, cores[:threads])
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)


def read_arguments(description: str | None) -> tuple[argparse.Namespace, Path]:
    """The command line of an engine's benchmark, obeyed as far as threads go, and the images it asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--width", type=int, default=500, help="of the stored images, 3/4 as high")
    parser.add_argument("--size", type=int, default=224, help="side of the views")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="over which resident memory is followed")
    parser.add_argument("--rows", type=int, default=1_281_167, help="of the table that is swapped: ImageNet's")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "saga-fast-benchmarks", help="keeps the images"
    )
    arguments = parser.parse_args()
    bind(arguments.threads)
    height = arguments.width * 3 // 4
    return arguments, make_images(arguments.data, arguments.images, width=arguments.width, height=height)
