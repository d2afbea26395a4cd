"""Parts of an unfinished box table: each holds the rows of some batches, so that a killed pass can be resumed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from saga_fast.loaders import BoxTable
from saga_fast.loaders.box_table import column_digest, serialized
from saga_fast.runtime.files import replacing
from saga_fast.version import __version__

log = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.generic]]
"""``index`` (n,) int64 and the columns of a box table for these rows."""
COLUMNS = {"boxes": np.float32, "found": np.bool_, "pseudo_label": np.int32, "score": np.float32}
SECONDS = 30.0
"""Time between two parts of a process: the work that it loses at most when it is killed."""


class Parts:
    """A folder of parts of one table, each a safetensors file named by its first batch.

    A part records what it was computed from, and parts of anything else are ignored. A batch does not depend on the
    number of processes, so a pass may be resumed with another number.

    Args:
        folder: the folder, see :func:`parts_folder`.
        resume: read the parts of an earlier pass instead of removing them.
        seconds: between two parts.
    """

    def __init__(self, folder: Path, *, resume: bool = False, seconds: float = SECONDS) -> None:
        self.folder, self.resume, self.seconds = folder, resume, seconds

    def begin(self) -> None:
        """Make the folder, and remove an earlier pass's parts unless they are to be resumed."""
        if not self.resume:
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, rows: Columns, batches: Int64, origin: Mapping[str, str]) -> None:
        """Write a part, whole or not at all.

        Args:
            rows: ``index`` and the columns.
            batches: the numbers of the rows' batches.
            origin: strings that say what the rows were computed from.
        """
        # safetensors writes the memory of a strided array as it lies, so the columns must be contiguous.
        columns = {name: np.ascontiguousarray(column) for name, column in {**rows, "batches": batches}.items()}
        metadata = {"origin": _canonical(origin)}
        content = serialized(columns, {**metadata, "sha256": column_digest(columns, metadata)})
        with replacing(self.folder / f"part_{int(batches[0]):09d}.safetensors") as temporary:
            temporary.write_bytes(content)

    def read(self, origin: Mapping[str, str]) -> tuple[Columns, Int64]:
        """The rows of all parts of this ``origin``, and the sorted numbers of their batches.

        Parts of another origin and damaged parts are left out, with a warning.
        """
        parts: list[tuple[Columns, Int64]] = []
        batches: set[int] = set()
        for path in sorted(self.folder.glob("part_*.safetensors")):
            part = _read_part(path, origin)
            if part is not None and batches.isdisjoint(part[1].tolist()):
                parts.append(part)
                batches.update(part[1].tolist())
        names = {"index": np.int64, **COLUMNS}
        shapes = {name: (0, 4) if name == "boxes" else (0,) for name in names}
        empty: Columns = {name: np.empty(shapes[name], dtype) for name, dtype in names.items()}
        joined = {name: np.concatenate([empty[name], *(rows[name] for rows, _ in parts)]) for name in names}
        return joined, np.array(sorted(batches), np.int64)

    def remove(self) -> None:
        """Remove the folder, after the table was saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def parts_folder(table: Path) -> Path:
    """The folder of a table's parts: hidden, in the table's folder."""
    return table.with_name(f".{table.name}.parts")


def rows_of(table: BoxTable, index: Int64) -> Columns:
    """The rows ``index`` of a table."""
    return {"index": index, **{name: getattr(table, name)[index] for name in COLUMNS}}


def put_rows(table: BoxTable, rows: Columns) -> None:
    """Write rows into a table's columns, in place."""
    for name in COLUMNS:
        getattr(table, name)[rows["index"]] = rows[name]


def _canonical(origin: Mapping[str, str]) -> str:
    return json.dumps({**origin, "created_by": f"saga-fast {__version__}"}, sort_keys=True)


def _read_part(path: Path, origin: Mapping[str, str]) -> tuple[Columns, Int64] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            recorded = json.loads(metadata.get("origin", "{}"))
            expected = json.loads(_canonical(origin))
            differing = sorted(k for k in recorded.keys() | expected.keys() if recorded.get(k) != expected.get(k))
            if differing:
                log.warning("%s was computed from another %s: computing its images again", path, ", ".join(differing))
                return None
            columns = {name: file.get_tensor(name) for name in ("index", *COLUMNS, "batches")}
            if metadata.pop("sha256", None) != column_digest(columns, metadata):
                raise ValueError("its checksum is wrong")
            return columns, columns.pop("batches")
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): computing its images again", path, error)
        return None
