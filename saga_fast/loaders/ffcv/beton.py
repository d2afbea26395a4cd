"""A .beton file as a data set: a file in FFCV's format, and the list of the images that it was packed from.

The file has the fields image, label and index: FFCV's loader reads it too. A record's ``index`` is the
image's position in the packed folder, so images that could not be decoded and have no record do not shift the others.
The list (``X.beton.json``) holds the paths of all images, and so the fingerprint that box tables record; that of a data
set which is not told by its paths alone is ``dataset``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ffcv.fields import IntField, RGBImageField
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

from saga_fast.errors import SagaError
from saga_fast.kernels.planes_to_rgb import num_bytes, planes_to_rgb
from saga_fast.loaders.decode import MAX_PIXELS
from saga_fast.loaders.ffcv.decoder import JPEG, PLANES, RAW
from saga_fast.loaders.image_folder import _read_classes
from saga_fast.loaders.names import Names
from saga_fast.loaders.source import fingerprint
from saga_fast.runtime.files import map_file, read_file

FORMAT = "saga-fast/beton"
VERSIONS = {False: 1, True: 2}
"""Version of the list, by whether any image is stored as planes, which saga-fast 0.1 does not read."""
SUFFIX = ".beton"
MAX_LIST_BYTES = 2**32
FIELDS = {"image": RGBImageField, "label": IntField, "index": IntField}
RECORD: np.dtype[Any] = get_metadata_type([field() for field in FIELDS.values()])
RECORDS_BEGIN = HeaderType.itemsize + len(FIELDS) * FieldDescType.itemsize

Int64 = npt.NDArray[np.int64]


class Beton:
    """A file that ``saga-fast pack`` wrote, with the order, paths, labels and fingerprint of the packed folder.

    Args:
        path: the .beton file.
        classes: a class list as for :class:`ImageFolder`; the file must have been packed with the same classes.

    Attributes:
        root: the file.
        paths, labels, classes: those of the packed folder, undecodable images included.
        bad: index and reason of the images that could not be decoded and have no record.
        row: (N,) int64, the record of each image, -1 for none. For M records:
        begins, lengths: (M,) int64, position and size of the record's image in the file, bytes.
        sizes: (M, 2) int64, height and width.
        modes: (M,) uint8, JPEG, RAW or PLANES.
        planes: whether all images are PLANES; otherwise none is.
        scratch_bytes: memory to decode any image of up to MAX_PIXELS: the pixels of the largest, raw ones aside, and
            the bytes of the longest JPEG.

    Raises:
        SagaError: no such file, not one that ``saga-fast pack`` wrote, cut short, or packed with other
            classes than asked for.
    """

    def __init__(self, path: Path | str, *, classes: Path | str | None = None) -> None:
        self.root = Path(path)
        if self.root.is_dir() or self.root.suffix != SUFFIX:
            raise SagaError(
                f"the ffcv engine reads .beton files, not {self.root}: pack a folder with saga-fast pack DIR OUT.beton"
            )
        if not self.root.is_file():
            raise SagaError(f"no such file: {self.root}")
        about = _read_sidecar(sidecar_path(self.root))
        self.paths: Sequence[str] = Names.of(about["paths"])
        self.labels: Int64 = np.array(about["labels"], np.int64)
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.bad: dict[int, str] = dict(about["bad"])
        self.fingerprint: str = about.get("dataset", about["fingerprint"])
        if classes is not None and tuple(sorted(_read_classes(Path(classes)))) != self.classes:
            raise SagaError(
                f"{self.root} was packed with other classes than {classes} lists: pack again with --classes {classes}"
            )
        records = self._read_records(about)
        self.row: Int64 = np.full(len(self.paths), -1, np.int64)
        self.row[records["f2"]] = np.arange(len(records))
        self.sizes: Int64 = np.stack([records["f0"]["height"], records["f0"]["width"]], 1).astype(np.int64)
        self.modes: npt.NDArray[np.uint8] = records["f0"]["mode"].astype(np.uint8)
        self.planes = bool((self.modes == PLANES).any())
        pixels, lengths = self.sizes[self.modes != RAW].prod(1), self.lengths[self.modes == JPEG]
        self.scratch_bytes = 3 * int(pixels[pixels <= MAX_PIXELS].max(initial=0)) + int(lengths.max(initial=0))
        self._memory = map_file(self.root)
        self._bytes = len(self._memory)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"Beton({str(self.root)!r}: {len(self)} images, {len(self.classes)} classes, {len(self.bad)} bad)"

    def read(self, index: int) -> bytes:
        """See :meth:`saga_fast.loaders.source.Source.read`; pixels and planes as a PPM file."""
        row = self.row[index]
        if row < 0:
            raise OSError(f"{self.root} has no record of image {index}: {self.bad[index]}")
        begin, length = int(self.begins[row]), int(self.lengths[row])
        stored = self._memory[begin : begin + length]
        if self.modes[row] == JPEG:
            return stored
        height, width = self.sizes[row].tolist()
        if self.modes[row] == PLANES:
            stored = planes_to_rgb(np.frombuffer(stored, np.uint8), self.sizes[row : row + 1]).tobytes()
        return b"P6\n%d %d\n255\n" % (width, height) + stored

    def address(self) -> int:
        """The address of the file in this process's memory, valid as long as this object.

        Raises:
            SagaError: see :meth:`check_length`.
        """
        self.check_length()
        return int(np.frombuffer(self._memory, np.uint8, count=1).ctypes.data)

    def check_length(self) -> None:
        """
        Raises:
            SagaError: the file was truncated since it was opened. Reading beyond its end would kill the process.
        """
        if (now := self._memory.size()) < self._bytes:
            raise SagaError(f"{self.root} was cut from {self._bytes} to {now} bytes while in use")

    def _read_records(self, about: dict[str, Any]) -> npt.NDArray[Any]:
        """The records, after all checks that a reader relies on; sets ``begins`` and ``lengths``."""
        expected = about["beton"]
        actual = self.root.stat().st_size
        if actual != expected["bytes"]:
            raise SagaError(
                f"{self.root} has {actual} bytes, {sidecar_path(self.root).name} says {expected['bytes']}:"
                " it was cut short, or the two are of different files; pack again"
            )
        header = np.fromfile(self.root, HeaderType, count=1)[0]
        count, table_begin = int(header["num_samples"]), int(header["alloc_table_ptr"])
        fits = RECORDS_BEGIN + count * RECORD.itemsize <= table_begin
        fits &= table_begin + count * ALLOC_TABLE_TYPE.itemsize == actual
        if int(header["version"]) != CURRENT_VERSION or int(header["num_fields"]) != len(FIELDS) or not fits:
            raise SagaError(f"{self.root} is damaged, or not a file that saga-fast pack wrote: its header does not fit")
        records = np.fromfile(self.root, RECORD, count=count, offset=RECORDS_BEGIN)
        if records_digest(records) != expected["records_sha256"]:
            raise SagaError(
                f"{sidecar_path(self.root).name} belongs to another file than {self.root}, or one of them is damaged:"
                " pack again"
            )
        table = np.fromfile(self.root, ALLOC_TABLE_TYPE, count=count, offset=table_begin)
        image = records["f0"]
        self.begins: Int64 = image["data_ptr"].astype(np.int64)
        self.lengths: Int64 = table["size"].astype(np.int64)
        pixel_bytes = image["height"].astype(np.int64) * image["width"] * 3
        good = (table["ptr"] == image["data_ptr"]) & (self.begins >= RECORDS_BEGIN) & (self.lengths > 0)
        good &= (self.lengths <= table_begin - self.begins) & (pixel_bytes > 0)  # a sum could overflow
        order = self.begins.argsort()
        ends = (self.begins + np.minimum(self.lengths, table_begin))[order]
        good &= bool((ends[:-1] <= self.begins[order][1:]).all())  # an image within another would have its pixels
        plane_bytes = num_bytes(image["height"].astype(np.int64), image["width"].astype(np.int64))
        good &= (
            (image["mode"] == JPEG)
            | ((image["mode"] == RAW) & (self.lengths == pixel_bytes))
            | ((image["mode"] == PLANES) & (self.lengths == plane_bytes))
        )
        planes = image["mode"] == PLANES
        good &= planes.all() | ~planes
        without = set(range(len(self.paths))) - set(records["f2"].tolist())
        good &= records["f1"] == self.labels[np.clip(records["f2"], 0, len(self.paths) - 1)]
        if not good.all() or without != set(self.bad) or len(without) + count != len(self.paths):
            raise SagaError(f"{self.root} is damaged: its records do not fit the file or its list; pack again")
        return records


def sidecar_path(beton: Path) -> Path:
    """The path of a .beton file's list."""
    return beton.with_name(f"{beton.name}.json")


def records_digest(records: npt.NDArray[Any]) -> str:
    """The hash of the records (place, size, label and index of each image), which ties the list to the file."""
    return hashlib.sha256(records.tobytes()).hexdigest()


def _read_sidecar(path: Path) -> dict[str, Any]:
    """
    Raises:
        SagaError: it is missing, unreadable, or not such a list.
    """
    try:
        about = json.loads(read_file(path, MAX_LIST_BYTES))
    except FileNotFoundError as error:
        raise SagaError(
            f"{path} is missing: the list of images that saga-fast pack writes with the .beton file;"
            " keep the two together, or pack again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise SagaError(f"cannot read {path}: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SagaError(f"{path} is not the list of images that saga-fast pack writes: expected format {FORMAT!r}")
    if about.get("version") not in VERSIONS.values():
        reads = " and ".join(map(str, VERSIONS.values()))
        raise SagaError(f"{path} has version {about.get('version')!r}, this saga-fast reads {reads}")
    try:
        whole = _is_whole(about)
    except ValueError:  # names that no file can have: a zero byte, surrogates that stand for no byte
        whole = False
    if not whole:
        raise SagaError(
            f"{path} is damaged: its paths do not fit its fingerprint, or its labels their digest; pack again"
        )
    return about


def contents_digest(labels: Sequence[int], classes: Sequence[str], bad: Sequence[Sequence[int | str]]) -> str:
    """The hash of a list's labels, classes and bad images, which the other digests do not cover."""
    return hashlib.sha256(json.dumps([labels, classes, bad]).encode("ascii")).hexdigest()


def _is_whole(about: dict[str, Any]) -> bool:
    """Whether a list has the fields, types and digests that ``saga-fast pack`` writes."""
    paths, labels, classes, bad, beton = (about.get(key) for key in ("paths", "labels", "classes", "bad", "beton"))
    return (
        isinstance(paths, list)
        and isinstance(labels, list)
        and isinstance(classes, list)
        and isinstance(bad, list)
        and isinstance(beton, dict)
        and {"bytes", "records_sha256"} <= set(beton)
        and len(paths) == len(labels) > 0
        and all(type(name) is str for name in (*paths, *classes))
        and all(type(label) is int and -1 <= label < len(classes) for label in labels)
        and all(isinstance(row, list) and [type(item) for item in row] == [int, str] for row in bad)
        and about.get("fingerprint") == fingerprint(paths)
        and re.fullmatch(rf"{len(paths)}-[0-9a-f]{{16}}", str(about.get("dataset", about["fingerprint"]))) is not None
        and about.get("contents_sha256") in (None, contents_digest(labels, classes, bad))
    )
