"""Data sets of Hugging Face's ``datasets``: folders of ``save_to_disk``, and parquet files with an image column.

``datasets`` opens them, as memory-mapped Arrow files; parquet files are converted to such files once, because reading
one image of a parquet file decodes some hundred others (164 ms against 22 us for images of 50 kB). Images are read from
the Arrow columns: ``dataset[i]`` takes 62 us, most of it with Python's lock held. No code of a data set is run, and no
path or address that a data set names is opened.
"""

from __future__ import annotations

import glob
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.loaders.decode import MAX_BYTES
from saga_fast.loaders.names import Names
from saga_fast.loaders.packages import require_packages
from saga_fast.loaders.source import fingerprint
from saga_fast.runtime.address import Location
from saga_fast.runtime.files import read_file

LABELS = ("label", "cls", "labels")
"""Names of columns of integers that are labels where no column says that it holds classes."""
SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet")
"""The names that ``datasets`` gives to the files of a split."""
NOT_IMAGES = (".parquet", ".md", ".json", ".gitattributes")
"""Endings of the files in a folder of parquet files."""
MAX_JSON = 2**26
Int64 = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class HuggingFaceImages:
    """The images of a folder of ``Dataset.save_to_disk``, or of parquet files, in the order of their rows.

    The images are the column whose feature is ``Image``; without features, the only column of bytes, or of structs with
    ``bytes`` and ``path``. Labels are the ``ClassLabel`` column, else a column of integers with a name of LABELS, else
    there are none. A row without an image, or whose image is only a path, is an image that cannot be read.

    Args:
        root: the folder or file, or a pattern such as ``DIR/train-*.parquet``.
        files: the parquet files, if they are copies of what is at ``root``.
        cache: the folder of converted parquet files; None: that of ``datasets``, ``HF_DATASETS_CACHE``.

    Attributes:
        root: as given.
        paths: N names: the ``path`` of each image, or the number of its row.
        labels: (N,) int64, position in ``classes``, or -1.
        classes: the names of the ``ClassLabel``, else the numbers up to the largest, or ().

    Raises:
        SagaError: ``datasets`` is not installed, a ``DatasetDict``, several splits, a damaged file, no image column or
            several, images that are only paths, labels out of range, or no row.
    """

    def __init__(self, root: Location, *, files: Sequence[Path] | None = None, cache: Path | None = None) -> None:
        require_packages(str(root), ("datasets", "pyarrow"), "pip install 'saga-fast[hf]'")
        self.root = root
        table, features = _open(Path(root), files, cache)
        if not len(table):
            raise SagaError(f"no image in {root}: it has no row")
        name = _image_column(table, features, root)
        self._chunks = [_bytes_of(chunk) for chunk in table.column(name).chunks]
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        sizes = [_sizes(chunk) for chunk in self._chunks]
        self._sizes: Int64 = np.concatenate([np.empty(0, np.int64), *sizes])
        if self._sizes.max() < 0:
            raise SagaError(f"no image in {root}: column {name!r} holds paths, save the images themselves")
        try:
            self.paths: Sequence[str] = _names(table.column(name))
        except ValueError as error:
            raise SagaError(f"cannot read {root}: the path of an image: {error}") from error
        self.classes, self.labels = _classes(table, features, root)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"HuggingFaceImages({str(self.root)!r}: {len(self)} images, {len(self.classes)} classes)"

    def read(self, index: int) -> bytes:
        """See :meth:`saga_fast.loaders.source.Source.read`."""
        size = int(self._sizes[index])
        if size < 0:
            raise OSError(f"row {index} of {self.root} holds no image")
        if size > MAX_BYTES:
            raise OSError(f"{size} bytes are more than {MAX_BYTES}")
        chunk = int(np.searchsorted(self._starts, index, "right")) - 1
        data: bytes = self._chunks[chunk][index - int(self._starts[chunk])].as_py()
        return data

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`saga_fast.loaders.source.fingerprint`; of names and sizes, because names may be row numbers."""
        return fingerprint([f"{path} {size}" for path, size in zip(self.paths, self._sizes.tolist(), strict=True)])


def is_hugging_face(path: Path) -> bool:
    """Whether a path is a folder of ``save_to_disk``, a parquet file, a folder of these, or a pattern of their names.

    The pattern has ``*`` in its last part only.
    """
    if not path.is_dir():
        return path.name.lower().endswith(".parquet")
    names = {entry.name.lower() for entry in path.iterdir() if not entry.name.startswith(".")}
    if "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names:
        return True
    return any(name.endswith(".parquet") for name in names) and all(name.endswith(NOT_IMAGES) for name in names)


def _open(root: Path, files: Sequence[Path] | None, cache: Path | None) -> tuple[Any, Mapping[str, Any]]:
    """The Arrow table and the features of a data set.

    Raises:
        SagaError: see :class:`HuggingFaceImages`.
    """
    import datasets

    is_saved = files is None and root.is_dir() and not any(root.glob("*.parquet"))
    if is_saved:
        _check_folder(root)
    else:
        files = _parquet_files(root) if files is None else files
    shows_bars = datasets.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if is_saved:
            dataset = datasets.Dataset.load_from_disk(str(root))
        else:
            assert files is not None
            # datasets takes brackets in a name for a pattern.
            names, folder = [glob.escape(str(file.resolve())) for file in files], None if cache is None else str(cache)
            dataset = datasets.Dataset.from_parquet(names, cache_dir=folder)
    except MemoryError:
        raise
    except Exception as error:  # it raises what its parsers trip over
        cause = error.__cause__ or error
        raise SagaError(f"cannot read {root}: {type(cause).__name__}: {' '.join(str(cause).split())}") from error
    finally:
        if shows_bars:
            datasets.enable_progress_bars()
    return dataset.data, dataset.features


def _check_folder(root: Path) -> None:
    """
    Raises:
        SagaError: a ``DatasetDict``, or a folder whose list names files outside of it.
    """
    if (root / "dataset_dict.json").is_file():
        splits = _json(root / "dataset_dict.json").get("splits")
        names = ", ".join(str(root / str(name)) for name in splits) if isinstance(splits, list) else "a split of it"
        raise SagaError(f"{root} holds several splits: name one of {names}")
    listed = _json(root / "state.json").get("_data_files")
    for file in listed if isinstance(listed, list) else []:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise SagaError(f"{root / 'state.json'} names {name!r}: expected names of files in its folder")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_file(path, MAX_JSON))
    except OSError as error:
        raise SagaError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SagaError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SagaError(f"{path} holds no names and values")
    return content


def _parquet_files(root: Path) -> list[Path]:
    """The parquet files at a path, sorted by name.

    Raises:
        SagaError: there is none, or they are of several splits.
    """
    if root.is_dir():
        files = sorted(file for file in root.glob("*.parquet") if not file.name.startswith("."))
    elif "*" in root.name:
        files = sorted(root.parent.glob(root.name))
    else:
        files = [root] if root.is_file() else []
    if not files:
        raise SagaError(f"no such parquet file: {root}")
    splits = sorted({match[1] for file in files if (match := SPLIT.fullmatch(file.name))})
    if len(splits) > 1:
        names = ", ".join(str(files[0].parent / f"{split}-*.parquet") for split in splits)
        raise SagaError(f"{root} holds several splits: name one of {names}")
    return files


def _image_column(table: Any, features: Mapping[str, Any], root: Location) -> str:
    """The name of the column of images.

    Raises:
        SagaError: there is none, or more than one.
    """
    import pyarrow
    from datasets import Image

    def is_image(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and is_image(kind.field("bytes").type)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    named = [name for name, feature in features.items() if isinstance(feature, Image)]
    found = named or [field.name for field in table.schema if is_image(field.type)]
    if len(found) != 1 or not is_image(table.schema.field(found[0]).type):
        columns = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
        raise SagaError(f"{root} needs one column of images, has {', '.join(found) or 'none'}; its columns: {columns}")
    return found[0]


def _bytes_of(chunk: Any) -> Any:
    """The column of bytes in a part of a column of images; null where an image is null."""
    import pyarrow

    return pyarrow.compute.struct_field(chunk, "bytes") if pyarrow.types.is_struct(chunk.type) else chunk


def _sizes(chunk: Any) -> Int64:
    """(n,) int64: bytes of each image, -1 for null. Only the offsets are read."""
    import pyarrow

    lengths = pyarrow.compute.fill_null(pyarrow.compute.binary_length(chunk), -1)
    sizes: Int64 = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes


def _names(column: Any) -> Names:
    """The ``path`` of each image, where it has one, else the number of its row."""
    import pyarrow

    kind = column.type
    has_paths = pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
    paths = pyarrow.compute.struct_field(column, "path").to_pylist() if has_paths else [None] * len(column)
    return Names.of(f"{row:09}" if path is None else str(path) for row, path in enumerate(paths))


def _classes(table: Any, features: Mapping[str, Any], root: Location) -> tuple[tuple[str, ...], Int64]:
    """The classes, and the (N,) labels.

    Raises:
        SagaError: a label out of range.
    """
    import pyarrow
    from datasets import ClassLabel

    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    numbers = [name for name in LABELS if name in features and pyarrow.types.is_integer(table.schema.field(name).type)]
    found = sorted(named, key=lambda name: name not in LABELS) or numbers
    if not found:
        return (), np.full(len(table), -1, np.int64)
    name = found[0]
    if len(named) > 1:
        log.info("%s: the labels are column %s, and not %s", root, name, ", ".join(found[1:]))
    try:
        column = table.column(name).cast(pyarrow.int64())
    except pyarrow.ArrowInvalid as error:
        raise SagaError(f"a label of {root} is too large: column {name}: {error}") from error
    values = pyarrow.compute.fill_null(column, -1).to_numpy().copy()  # PyTorch warns of arrays that are read-only
    names = features[name].names if named else None
    most = 2**20 if names is None else len(names)
    if values.min() < -1 or values.max() >= most:
        wrong = values.min() if values.min() < -1 else values.max()
        raise SagaError(f"a label of {root} must be in 0 to {most - 1}, or -1 for none: column {name} has {wrong}")
    classes = tuple(names) if names is not None else tuple(str(number) for number in range(values.max() + 1))
    return classes, values
