"""What the loaders' benchmarks share: the crops, boxes, ways to drain a loader, and decoding alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import torch

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
