"""The figures of a run: metrics.jsonl, and the loggers that get them too."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.runtime.files import named, read_file, write_text
from saga_fast.runtime.loggers import LoggedRun, Logger, LoggerName, open_loggers

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
MAX_BYTES = 2**30


class Metrics:
    """Rows of figures, appended to ``metrics.jsonl`` line by line and sent to the loggers as scalars.

    A row has ``kind`` (``epoch``, ``rankme``, ``online``, ``knn`` or ``renewal``), ``epoch`` (finished epochs) and
    figures. Scalars are named ``kind/figure``, or ``knn/layer_k``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: Callable[[dict[str, Any]], bool],
        loggers: Sequence[LoggerName] = (),
        config: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        """Open the files of a run folder, and the loggers.

        Args:
            folder: the run folder.
            keep: whether an earlier row stays.
            loggers: names of the loggers.
            config: the run's, for the loggers: nested mappings of plain YAML types.
            writes: False for the processes that write nothing, all but rank 0: every method then does nothing.

        Raises:
            SagaError: a logger that cannot be opened.
        """
        self._path, self._writes = folder / FILE, writes
        self._loggers: list[Logger] = []
        if not writes:
            return
        rows = [row for row in read_metrics(folder) if keep(row)]
        next_epoch = max((row["epoch"] for row in rows), default=-1) + 1
        self._loggers = open_loggers(loggers, LoggedRun(folder=folder, config=config or {}, next_epoch=next_epoch))
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, kind: str, epoch: int, **figures: Any) -> None:
        """Append a row, and send its numbers to the loggers at step ``epoch``."""
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
        for logger in self._loggers:
            logger.log(scalars, epoch)

    def add_picture(self, name: str, epoch: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Send a picture (H, W, 3) uint8 to the loggers at step ``epoch``."""
        for logger in self._loggers:
            logger.log_picture(name, pixels, epoch)

    def close(self, *, finished: bool) -> None:
        """Close the loggers. ``finished`` is False for a run that ended early and may be resumed."""
        for logger in self._loggers:
            logger.close(finished=finished)


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
