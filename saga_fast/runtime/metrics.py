"""The figures of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from saga_fast.runtime.files import named, read_file, write_text

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
MAX_BYTES = 2**30


class Metrics:
    """Rows of figures, appended to ``metrics.jsonl`` line by line and sent to TensorBoard as scalars.

    A row has ``kind`` (``epoch``, ``knn`` or ``renewal``), ``epoch`` (finished epochs) and figures. Scalars are named
    ``kind/figure``, or ``knn/layer_k``.
    """

    def __init__(self, folder: Path, *, keep: Callable[[dict[str, Any]], bool], writes: bool = True) -> None:
        """Open the files of a run folder.

        Args:
            folder: the run folder.
            keep: whether an earlier row stays.
            writes: False for the processes that write nothing, all but rank 0: every method then does nothing.
        """
        self._folder, self._path, self._writes = folder, folder / FILE, writes
        if not writes:
            return
        rows = [row for row in read_metrics(folder) if keep(row)]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._board = SummaryWriter(str(folder), purge_step=max((row["epoch"] for row in rows), default=-1) + 1)

    def add(self, kind: str, epoch: int, **figures: Any) -> None:
        """Append a row, and send its numbers to TensorBoard at step ``epoch``."""
        if not self._writes:
            return
        with named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "epoch": epoch, **figures}) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that counts on it
        if kind == "knn":
            scalars = {f"knn/{figures['layer']}_{figures['k']}": figures["top1"]}
        else:
            scalars = {f"{kind}/{name}": value for name, value in figures.items() if isinstance(value, int | float)}
        with named(self._folder):
            for name, value in scalars.items():
                self._board.add_scalar(name, value, epoch)

    def add_picture(self, name: str, epoch: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Send a picture (H, W, 3) uint8 to TensorBoard at step ``epoch``."""
        if self._writes:
            with named(self._folder):
                self._board.add_image(name, pixels, epoch, dataformats="HWC")

    def close(self) -> None:
        """Flush and close TensorBoard's files."""
        if self._writes:
            with named(self._folder):
                self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run folder, oldest first; [] if it has no metrics.jsonl.

    Lines that are not rows are left out: garbage with a warning, and a last line that a crash cut short silently.
    """
    path = folder / FILE
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = read_file(path, MAX_BYTES).split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("kind"), str) and type(row.get("epoch")) is int:
            rows.append(row)
        elif line.strip() and number < len(lines):
            log.warning("%s: line %d is not a row of figures: left out", path, number)
    return rows
