"""The box table: D^att as four small columns in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from saga_fast.errors import SagaError
from saga_fast.runtime.files import map_file, read_file, replacing
from saga_fast.version import __version__

FORMAT = "saga-fast/box-table"
VERSION = "2"
WITHOUT_DIGEST = "1"
"""An older version that is read too: it has no digest."""
MAPPED_BYTES = 2**28
"""Larger files are mapped: ImageNet's table has 32 MB."""
MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""
CHUNK = 2**20
"""Boxes that are checked at a time."""
COLUMNS = {"boxes": np.float32, "found": np.uint8, "pseudo_label": np.int32, "score": np.float32}


@dataclass(frozen=True)
class BoxTable:
    """One crop box per image of a data set.

    Attributes:
        boxes: (N, 4) float32 [x_min, y_min, w, h], normalised to [0, 1].
        found: (N,) bool; False where the attention map had no box: the box is then the whole image.
        pseudo_label: (N,) int32, c = argmax of z; -1 where there is none.
        score: (N,) float32, z^c.
        metadata: strings: dataset, checkpoint, epoch, delta, size, normalize, ... (empty for a table made in memory).

    Raises:
        SagaError: columns that do not fit together, or boxes that are not finite, empty or outside [0, 1].
    """

    boxes: npt.NDArray[np.float32]
    found: npt.NDArray[np.bool_]
    pseudo_label: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.boxes.shape[0] if self.boxes.ndim else -1
        shapes = [self.boxes.shape, self.found.shape, self.pseudo_label.shape, self.score.shape]
        if shapes != [(count, 4), (count,), (count,), (count,)]:
            raise SagaError(f"a box table needs columns (N, 4), (N,), (N,), (N,), got {shapes}")
        wrong, first = 0, -1
        for start in range(0, count, CHUNK):
            near, side = self.boxes[start : start + CHUNK, :2], self.boxes[start : start + CHUNK, 2:]
            # NaN fails every comparison; 1e-6 is float32's rounding of x_min + w.
            good = (near >= 0.0).all(1) & (side > 0.0).all(1) & (near + side <= 1.0 + 1e-6).all(1)
            first = start + int(np.argmin(good)) if first < 0 and not good.all() else first
            wrong += int((~good).sum())
        if wrong:
            raise SagaError(f"{wrong} boxes are empty or leave [0, 1], the first is row {first}: {self.boxes[first]}")

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def whole(cls, n: int) -> BoxTable:
        """The table whose boxes are the whole images, for ``n`` images, with found = False."""
        return cls(
            boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (n, 1)),
            found=np.zeros(n, np.bool_),
            pseudo_label=np.full(n, -1, np.int32),
            score=np.zeros(n, np.float32),
        )

    @property
    def found_fraction(self) -> float:
        """The fraction of the images that have a box."""
        return float(self.found.mean()) if len(self) else 0.0

    @property
    def mean_area(self) -> float:
        """The mean of w * h over all images."""
        return float((self.boxes[:, 2] * self.boxes[:, 3]).mean()) if len(self) else 0.0

    def check(self, dataset: str, num_images: int) -> None:
        """Check that the table belongs to a data set.

        Args:
            dataset: the data set's fingerprint; a table made in memory has none and is checked by its length.
            num_images: its number of images.

        Raises:
            SagaError: with both fingerprints, or both lengths.
        """
        made_for = self.metadata.get("dataset", dataset)
        if made_for != dataset:
            raise SagaError(
                f"the box table was made for data set {made_for}, not for {dataset}: rebuild it with saga-fast"
                " build-att"
            )
        if len(self) != num_images:
            raise SagaError(
                f"the box table has {len(self)} rows, the data set {num_images} images:"
                " rebuild it with saga-fast build-att"
            )

    def updated(self, newer: BoxTable, indices: npt.NDArray[np.int64]) -> BoxTable:
        """A copy of this table with the rows ``indices`` (n,) of ``newer``, and the metadata of ``newer``."""
        columns = {}
        for name in COLUMNS:
            columns[name] = np.array(getattr(self, name))
            columns[name][indices] = getattr(newer, name)[indices]
        return BoxTable(**columns, metadata=newer.metadata)

    def save(self, path: Path | str) -> None:
        """Write the table: whole or not at all.

        Raises:
            OSError: the folder cannot be written or the disk is full; an existing file is as it was.
        """
        columns = {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in COLUMNS.items()}
        metadata = {
            **self.metadata,
            "format": FORMAT,
            "version": VERSION,
            "num_images": str(len(self)),
            "found_fraction": f"{self.found_fraction:.6f}",
            "created_by": f"saga-fast {__version__}",
        }
        content = serialized(columns, {**metadata, "sha256": column_digest(columns, metadata)})
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def open(cls, path: Path | str) -> BoxTable:
        """Read a table written by :meth:`save`.

        A file above MAPPED_BYTES is mapped, so that processes share its memory: it must not be overwritten in place
        while it is used (saving replaces it). A smaller one is copied, which nothing done to the file can disturb.

        Raises:
            SagaError: no such file, not a box table, a newer version, wrong columns, or damaged ones.
        """
        path = Path(path)
        if not path.is_file():
            raise SagaError(f"no such box table: {path}")
        try:
            metadata, columns = _read(path)
        # TypeError: a dtype that NumPy lacks. KeyError: one that safetensors' reader lacks.
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            raise SagaError(f"not a box table: {path}: {error}") from error
        if {name: column.dtype for name, column in columns.items()} != {n: np.dtype(t) for n, t in COLUMNS.items()}:
            raise SagaError(f"{path} has the wrong columns: { {n: str(c.dtype) for n, c in columns.items()} }")
        digest = metadata.pop("sha256", None)
        if metadata["version"] != WITHOUT_DIGEST and digest != column_digest(columns, metadata):
            raise SagaError(
                f"{path} is damaged: its columns do not fit its sha256; rebuild it with saga-fast build-att"
            )
        found = columns["found"]
        found = found.view(np.bool_) if found.max(initial=0) <= 1 else found.astype(np.bool_)
        try:
            return cls(**(columns | {"found": found}), metadata=metadata)
        except SagaError as error:
            raise SagaError(f"{path}: {error}") from error


def serialized(columns: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file of contiguous columns; equal columns and metadata give equal bytes.

    safetensors itself writes the metadata in the order of a hash table, which differs from process to process.
    """
    content = save(dict(columns), metadata=dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # columns begin at a multiple of 8, as safetensors has them
    return len(text).to_bytes(8, "little") + text + content[end:]


def column_digest(columns: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of columns and metadata, in hexadecimal: a flipped bit may make another valid box."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode("ascii"))
    for name in sorted(columns):
        digest.update(np.ascontiguousarray(columns[name]).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, npt.NDArray[Any]]]:
    """Metadata and columns; the format is checked before what may be gigabytes of another program's weights is read.

    Raises:
        SagaError, SafetensorError, OSError, TypeError, KeyError: no file that can be read.
    """
    if path.stat().st_size <= MAPPED_BYTES:
        content = read_file(path, MAPPED_BYTES)
        metadata = _metadata(content)
        _check_format(metadata, path)
        return metadata, load(content)
    data = np.frombuffer(map_file(path, writable=True), np.uint8)
    metadata = _metadata(data)
    _check_format(metadata, path)
    with safe_open(path, framework="numpy") as file:  # checks that the columns fill the file and do not overlap
        names = list(file.keys())
    begin = 8 + int.from_bytes(bytes(data[:8]), "little")
    header = json.loads(bytes(data[8:begin]))
    columns = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        column = data[begin + start : begin + end].view(_DTYPES[header[name]["dtype"]])
        columns[name] = column.reshape(header[name]["shape"])
    return metadata, columns


_DTYPES = {"F32": np.float32, "I32": np.int32, "U8": np.uint8}


def _metadata(data: bytes | npt.NDArray[np.uint8]) -> dict[str, str]:
    """The metadata strings of a safetensors file.

    Raises:
        SafetensorError: not such a file.
    """
    size = int.from_bytes(bytes(data[:8]), "little")
    try:
        fits = 0 < size <= min(len(data) - 8, MAX_HEADER_BYTES)
        metadata = json.loads(bytes(data[8 : 8 + size])).get("__metadata__", {}) if fits else None
    except (ValueError, AttributeError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise SafetensorError("it has no header")
    return metadata


def _check_format(metadata: Mapping[str, str], path: Path) -> None:
    if metadata.get("format") != FORMAT:
        raise SagaError(f"not a box table: {path} has format {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("version") not in (VERSION, WITHOUT_DIGEST):
        raise SagaError(f"{path} has version {metadata.get('version')!r}, this saga-fast reads {VERSION!r}")
