"""True boxes of a data set's images: JSON, CSV and ImageNet's XML annotations."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.runtime.address import Location, is_address, public_address
from saga_fast.runtime.files import read_file, write_text

Float32 = npt.NDArray[np.float32]
MAX_BYTES, MAX_XML_BYTES = 2**30, 2**24
TrueBoxes = Mapping[str, Float32]
"""Path of an image in its data set -> (n, 4) [x_min, y_min, w, h], normalised, n at least 1."""
COLUMNS = ("path", "x_min", "y_min", "w", "h")
ROUNDING = 1e-3
"""A box may leave its image by this much: boxes written with three digits do."""


def true_boxes_file(source_root: Location) -> Path:
    """The path of a data set's true boxes: in its folder, or next to the file that ``saga-fast pack`` made of it.

    Raises:
        SagaError: a data set at an address.
    """
    if is_address(source_root):
        raise SagaError(
            f"true boxes are read from a file of this machine, and the images are at {public_address(source_root)}"
        )
    source_root = Path(source_root)
    return source_root.with_suffix(".boxes.json") if source_root.suffix == ".beton" else source_root / "boxes.json"


def copy_true_boxes(source_root: Location, target_root: Path) -> None:
    """Copy a data set's true boxes, if it has any, to the place of those of the data set packed from it."""
    if is_address(source_root):
        return
    file = true_boxes_file(source_root)
    if file.is_file():
        write_text(true_boxes_file(target_root), file.read_text(encoding="utf-8"))


def read_true_boxes(path: Path, images: Sequence[str]) -> TrueBoxes:
    """The true boxes of those ``images`` that have any, as :func:`find_true_boxes`; at least one image has one.

    Raises:
        SagaError: also if no image has a box.
    """
    known = find_true_boxes(path, images)
    if not known:
        raise SagaError(f"{path} has a box for none of the {len(images)} images, such as {images[0]!r}")
    return known


def find_true_boxes(path: Path, images: Sequence[str]) -> TrueBoxes:
    """The true boxes of those ``images`` that have any.

    Args:
        path: ``boxes.json``, which maps paths to a box or a list of boxes; a CSV file with the columns COLUMNS, one
            line per box; or a folder of ImageNet's (Pascal VOC's) XML files: at the image's path, or anywhere in the
            folder by the image's name. Numbers are fractions of the image's sides, but pixels in XML.
        images: relative paths of the data set.

    Raises:
        SagaError: no such file, one that cannot be read, a box that is not inside its image, or several XML files of an
            image's name.
    """
    if path.is_dir():
        boxes = _read_xml(path, images)
    elif not path.is_file():
        raise SagaError(f"no such file or folder of true boxes: {path}")
    else:
        boxes = _read_csv(path) if path.suffix == ".csv" else _read_json(path)
    known = {
        image: np.asarray(boxes[image], np.float32).reshape(-1, 4)
        for image in images
        if image in boxes and len(boxes[image])
    }
    for image, each in known.items():
        near, far = each[:, :2], each[:, :2] + each[:, 2:]
        inside = (near >= -ROUNDING) & (far <= 1.0 + ROUNDING) & (each[:, 2:] > 0.0)
        if not inside.all():  # NaN, too
            wrong = each[~inside.all(1)][0].tolist()
            raise SagaError(f"{path}: box {wrong} of {image!r} is not [x, y, w, h] in fractions of the image's sides")
    return known


def _read_json(path: Path) -> dict[str, Any]:
    try:
        boxes = json.loads(read_file(path, MAX_BYTES))
        arrays = {image: np.array(value, np.float32) for image, value in boxes.items()}
        for image, array in arrays.items():
            if array.size and (array.ndim not in (1, 2) or array.shape[-1] != 4):
                raise ValueError(f"those of {image!r} have shape {array.shape}")
        return {image: array.reshape(-1, 4) for image, array in arrays.items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise SagaError(f'{path} must map paths to boxes, as {{"class/name.jpg": [x, y, w, h]}}: {error}') from error


def _read_csv(path: Path) -> dict[str, list[list[float]]]:
    boxes: dict[str, list[list[float]]] = {}
    try:
        lines = read_file(path, MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SagaError(f"{path} is not a CSV file in UTF-8: {error.reason}") from error
    rows = csv.DictReader(lines)
    try:
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise SagaError(f"{path} needs the columns {', '.join(COLUMNS)}, has {', '.join(rows.fieldnames or ())}")
        for row in rows:
            boxes.setdefault(row["path"], []).append([float(row[name]) for name in COLUMNS[1:]])
    except (TypeError, ValueError, csv.Error) as error:
        raise SagaError(f"{path} line {rows.line_num}: {error}") from error
    return boxes


def _read_xml(folder: Path, images: Sequence[str]) -> dict[str, list[list[float]]]:
    files = sorted(folder.rglob("*.xml"))
    by_path = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    by_name: dict[str, list[Path]] = {}
    for file in files:
        by_name.setdefault(file.stem, []).append(file)
    boxes = {}
    for image in images:
        exact = by_path.get(PurePosixPath(image).with_suffix("").as_posix())
        named = [exact] if exact else by_name.get(PurePosixPath(image).stem, [])
        if len(named) > 1:
            raise SagaError(f"{named[0]} and {named[1]} both have the name of {image}: name files by the images' paths")
        if named and (annotated := _annotation(named[0])):
            boxes[image] = annotated
    return boxes


def _annotation(file: Path) -> list[list[float]]:
    """The boxes of a Pascal VOC file, as fractions. Pixels (from 1 in Pascal VOC, 0 in ImageNet) are edges."""
    try:
        root = ET.fromstring(read_file(file, MAX_XML_BYTES))
        size = [float(root.findtext(f"size/{side}", "nan")) for side in ("width", "height")]
        corners = [
            [float(box.findtext(name, "nan")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iterfind("object/bndbox")
        ]
    except (ET.ParseError, ValueError, LookupError) as error:  # of an unknown encoding
        raise SagaError(f"{file} is not an annotation: {error}") from error
    if not min(size) > 0.0:
        raise SagaError(f"{file} is not an annotation: its image has the size {size}")
    extent = np.array([*size, *size])
    edges = np.clip(np.array(corners).reshape(-1, 4) / extent, 0.0, 1.0)
    if not np.isfinite(edges).all():
        raise SagaError(f"{file} is not an annotation: size or bndbox is not complete")
    sides = edges[:, 2:] - edges[:, :2]
    good = (sides > 0.0).all(1)
    return np.concatenate([edges[:, :2], sides], 1)[good].tolist()  # type: ignore[no-any-return]
