"""metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from saga_fast.files import write_text

FILE = "metrics.jsonl"


class Metrics:
    """Rows of figures, appended to ``metrics.jsonl`` line by line and sent to TensorBoard as scalars.

    A row has ``kind`` (``epoch``, ``knn`` or ``renewal``), ``epoch`` (finished epochs) and figures. Scalars are named
    ``kind/figure``, or ``knn/layer_k``.
    """

    def __init__(self, folder: Path, *, keep: Callable[[dict[str, Any]], bool], writes: bool = True) -> None:
        """Open the files of a run folder; of earlier rows those that ``keep`` accepts stay. Unless this process
        ``writes``, which one of several does, nothing is done here or later."""
        self._path, self._writes = folder / FILE, writes
        if not writes:
            return
        rows = [row for row in read_metrics(folder) if keep(row)]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._board = SummaryWriter(str(folder), purge_step=max((row["epoch"] for row in rows), default=-1) + 1)

    def add(self, kind: str, epoch: int, **figures: Any) -> None:
        """Append a row; its numbers go to TensorBoard at step ``epoch``."""
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "epoch": epoch, **figures}) + "\n")
        if kind == "knn":
            self._board.add_scalar(f"knn/{figures['layer']}_{figures['k']}", figures["top1"], epoch)
            return
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, epoch)

    def add_picture(self, name: str, epoch: int, picture: Image.Image) -> None:
        """A picture for TensorBoard alone, at step ``epoch``."""
        self._board.add_image(name, np.asarray(picture), epoch, dataformats="HWC")

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._writes:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run folder, oldest first; a last line that a crash cut short is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
