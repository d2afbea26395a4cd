"""Writer of FFCV's format, in one pass and one process, without knowing sizes and bad images beforehand.

FFCV's ``DatasetWriter`` is not used: it forks, waits for ever when a worker fails (an image larger than its page of
8 MiB is enough), needs the number of good images in advance, and hung at exit when a loader was open.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, TYPE_ID_HANDLER, FieldDescType, HeaderType

from saga_fast.loaders.ffcv.beton import FIELDS, RECORD, RECORDS_BEGIN
from saga_fast.loaders.ffcv.decoder import PLANES

CUSTOM = 255
"""FFCV's number of fields that are not its own: its reader refuses planes, which it would take for RGB pixels."""
PAGE = 2**23
"""FFCV's default page, 8 MiB. No image crosses a page's border, so that FFCV's process cache can read the file."""


class BetonWriter:
    """A .beton file being written: header, fields and space for records first, then the images as they come.

    Args:
        path: the file, which is overwritten.
        capacity: largest number of records; the space of missing ones stays unused.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._records: npt.NDArray[Any] = np.zeros(capacity, RECORD)
        self._table = np.zeros(capacity, ALLOC_TABLE_TYPE)
        self._count, self._page = 0, PAGE
        self._end = RECORDS_BEGIN + capacity * RECORD.itemsize
        self._file = path.open("wb", buffering=2**20)

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, *, index: int, label: int, mode: int, height: int, width: int, data: bytes) -> None:
        """Append a record and its image."""
        # Images that keep within small pages keep within larger ones, so the page may grow on the way.
        while len(data) > self._page:
            self._page *= 2
        begin = self._end
        if begin // self._page != (begin + len(data) - 1) // self._page:
            begin = -(-begin // self._page) * self._page
        self._file.seek(begin)
        self._file.write(data)
        self._end = begin + len(data)
        self._records[self._count] = ((mode, width, height, begin), label, index)
        self._table[self._count] = (self._count, begin, len(data))
        self._count += 1

    def finish(self) -> npt.NDArray[Any]:
        """Write what goes around the images; the records."""
        header = np.zeros(1, HeaderType)
        header[0] = (CURRENT_VERSION, len(FIELDS), self._page, self._count, self._end)
        records = self._records[: self._count]
        self._file.seek(self._end)
        self._file.write(self._table[: self._count].tobytes())
        self._file.seek(0)
        only_ours = bool((records["f0"]["mode"] == PLANES).any())
        self._file.write(header.tobytes() + _describe_fields(only_ours=only_ours).tobytes() + records.tobytes())
        self._file.flush()
        return records


def _describe_fields(*, only_ours: bool) -> npt.NDArray[Any]:
    """The names and types of the fields; ``only_ours``: the images are of a type that FFCV asks its user for."""
    kinds = {field: number for number, field in TYPE_ID_HANDLER.items()}
    described = np.zeros(len(FIELDS), FieldDescType)
    for row, (name, field) in zip(described, FIELDS.items(), strict=True):
        row["type_id"] = kinds[field]
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
    if only_ours:
        described[0]["type_id"] = CUSTOM
    return described
