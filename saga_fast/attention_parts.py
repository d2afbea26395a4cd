"""Parts of a box table under way: each holds the rows of some batches, so that a pass that was killed goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from saga_fast.files import replacing
from saga_fast.loaders import BoxTable
from saga_fast.loaders.box_table import column_digest
from saga_fast.version import __version__

log = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.generic]]
COLUMNS = {"boxes": np.float32, "found": np.bool_, "pseudo_label": np.int32, "score": np.float32}
SECONDS = 30.0
"""A process writes a part when it has worked as long on it: what it loses at most when it is killed."""


class Parts:
    """A folder of parts of one table, each a safetensors file named by its first batch.

    A part holds ``index`` (n,) int64 and the table's columns for these rows, and says what it was computed from; parts
    of anything else are not taken. Every batch is what it is in a pass of one process, whatever the number of
    processes was and is.
    """

    def __init__(self, folder: Path, *, seconds: float = SECONDS) -> None:
        self.folder, self.seconds = folder, seconds

    def begin(self, *, keep: bool) -> None:
        """Make the folder; what an earlier pass left there goes, unless it is to be kept."""
        if not keep:
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, rows: Columns, batches: Int64, origin: Mapping[str, str]) -> None:
        """Write a part, whole or not at all.

        Args:
            rows: ``index`` and the columns.
            batches: numbers of the batches that these rows are.
            origin: strings that say what the rows were computed from.
        """
        # safetensors writes the memory that a strided array, every other batch say, begins in.
        columns = {name: np.ascontiguousarray(column) for name, column in {**rows, "batches": batches}.items()}
        metadata = {"origin": _canonical(origin)}
        content = save(columns, metadata={**metadata, "sha256": column_digest(columns, metadata)})
        with replacing(self.folder / f"part_{int(batches[0]):09d}.safetensors") as temporary:
            temporary.write_bytes(content)

    def read(self, origin: Mapping[str, str]) -> tuple[Columns, Int64]:
        """What the parts of this ``origin`` hold: ``index`` and the columns, and the batches that they are.

        Parts of another origin and damaged ones are left out, with a warning.
        """
        found: list[tuple[Columns, Int64]] = []
        taken: set[int] = set()
        for path in sorted(self.folder.glob("part_*.safetensors")):
            part = _read(path, origin)
            if part is not None and taken.isdisjoint(part[1].tolist()):
                found.append(part)
                taken.update(part[1].tolist())
        names = {"index": np.int64, **COLUMNS}
        rows = {name: [part[name] for part, _ in found] for name in names}
        shapes = {name: (0, 4) if name == "boxes" else (0,) for name in names}
        empty: Columns = {name: np.empty(shapes[name], dtype) for name, dtype in names.items()}
        joined = {name: np.concatenate([empty[name], *rows[name]]) for name in names}
        return joined, np.array(sorted(taken), np.int64)

    def remove(self) -> None:
        """After the table has been saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def parts_of(table: Path) -> Path:
    """The folder of a table's parts: beside it, until the table is there."""
    return table.with_name(f".{table.name}.parts")


def rows_of(table: BoxTable, index: Int64) -> Columns:
    """These rows of a table, as a part has them."""
    return {"index": index, **{name: getattr(table, name)[index] for name in COLUMNS}}


def _canonical(origin: Mapping[str, str]) -> str:
    return json.dumps({**origin, "created_by": f"saga-fast {__version__}"}, sort_keys=True)


def _read(path: Path, origin: Mapping[str, str]) -> tuple[Columns, Int64] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            own = json.loads(metadata.get("origin", "{}"))
            expected = json.loads(_canonical(origin))
            differing = sorted(key for key in own.keys() | expected.keys() if own.get(key) != expected.get(key))
            if differing:
                log.warning("%s is of another %s and computed anew", path, ", ".join(differing))
                return None
            columns = {name: file.get_tensor(name) for name in ("index", *COLUMNS, "batches")}
            if metadata.pop("sha256", None) != column_digest(columns, metadata):
                raise ValueError("it is damaged")
            return columns, columns.pop("batches")
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and is computed anew", path, error)
        return None
