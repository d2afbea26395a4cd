"""How good attention boxes are where true boxes are known: IoU, CorLoc, area, and drift between renewals.

An image may have several true boxes; the best overlap counts, as usual for CorLoc (Deselaers et al., IJCV 2012).
"""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.attention import box_iou
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable

Float32 = npt.NDArray[np.float32]
TrueBoxes = Mapping[str, Float32]
"""Path of an image in its data set -> (n, 4) [x_min, y_min, w, h], normalised, n at least 1."""

COLUMNS = ("path", "x_min", "y_min", "w", "h")
ROUNDING = 1e-3
"""By how much a box may stick out of its image: written with three digits, it does."""


def read_boxes(path: Path, images: Sequence[str]) -> TrueBoxes:
    """:func:`find_boxes`, where there has to be something to find.

    Raises:
        SagaError: also where none of the images has a box.
    """
    known = find_boxes(path, images)
    if not known:
        raise SagaError(f"{path} has a box for none of the {len(images)} images, such as {images[0]!r}")
    return known


def find_boxes(path: Path, images: Sequence[str]) -> TrueBoxes:
    """True boxes of those ``images`` that have any.

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
        boxes = json.loads(path.read_text(encoding="utf-8"))
        return {image: np.array(value, np.float32).reshape(-1, 4) for image, value in boxes.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise SagaError(f'{path} must map paths to boxes, as {{"class/name.jpg": [x, y, w, h]}}: {error}') from error


def _read_csv(path: Path) -> dict[str, list[list[float]]]:
    boxes: dict[str, list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise SagaError(f"{path} needs the columns {', '.join(COLUMNS)}, has {', '.join(rows.fieldnames or ())}")
        for row in rows:
            try:
                boxes.setdefault(row["path"], []).append([float(row[name]) for name in COLUMNS[1:]])
            except (TypeError, ValueError) as error:
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
        own = by_path.get(PurePosixPath(image).with_suffix("").as_posix())
        named = [own] if own else by_name.get(PurePosixPath(image).stem, [])
        if len(named) > 1:
            raise SagaError(f"{named[0]} and {named[1]} both have the name of {image}: name files by the images' paths")
        if named and (found := _annotation(named[0])):
            boxes[image] = found
    return boxes


def _annotation(file: Path) -> list[list[float]]:
    """Boxes of a Pascal VOC file: pixels, from 1 on in Pascal VOC and from 0 on in ImageNet; taken as edges."""
    try:
        root = ET.parse(file).getroot()
        size = [float(root.findtext(f"size/{side}", "nan")) for side in ("width", "height")]
        corners = [
            [float(box.findtext(name, "nan")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iterfind("object/bndbox")
        ]
    except (ET.ParseError, ValueError) as error:
        raise SagaError(f"{file} is not an annotation: {error}") from error
    extent = np.array([*size, *size])
    edges = np.clip(np.array(corners).reshape(-1, 4) / extent, 0.0, 1.0)
    if not np.isfinite(edges).all():
        raise SagaError(f"{file} is not an annotation: size or bndbox is not complete")
    sides = edges[:, 2:] - edges[:, :2]
    good = (sides > 0.0).all(1)
    return np.concatenate([edges[:, :2], sides], 1)[good].tolist()  # type: ignore[no-any-return]


def best_iou(boxes: Float32, truths: Sequence[Float32]) -> npt.NDArray[np.float64]:
    """Each box's IoU with the best of its image's true boxes: (N, 4), N times (n, 4) -> (N,)."""
    counts = [len(truth) for truth in truths]
    overlaps = box_iou(np.repeat(boxes, counts, axis=0), np.concatenate(truths))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.maximum.reduceat(overlaps, starts).astype(np.float64)


def box_quality(table: BoxTable, images: Sequence[str], truths: TrueBoxes) -> dict[str, Any]:
    """Figures of a table over the images whose true boxes are known.

    Returns:
        ``images`` of them; mean ``iou``; ``corloc`` (share with IoU >= 0.5); ``iou_whole`` and ``corloc_whole`` of the
        whole image as the box, which any table should beat; mean ``area`` and ``found_fraction`` of the table; mean
        ``true_area`` of the true boxes.
    """
    rows = [row for row, image in enumerate(images) if image in truths]
    known = [truths[images[row]] for row in rows]
    overlap = best_iou(table.boxes[rows], known)
    whole = best_iou(np.tile(np.array([0, 0, 1, 1], np.float32), (len(rows), 1)), known)
    return {
        "images": len(rows),
        "iou": float(overlap.mean()),
        "corloc": float((overlap >= 0.5).mean()),
        "iou_whole": float(whole.mean()),
        "corloc_whole": float((whole >= 0.5).mean()),
        "area": table.mean_area,
        "found_fraction": table.found_fraction,
        "true_area": float(np.mean([np.prod(truth[:, 2:], axis=1).mean() for truth in known])),
    }


def drift(earlier: BoxTable, later: BoxTable) -> float:
    """1 - mean IoU of the same images' boxes in two tables of one data set: 0 where nothing moved.

    Raises:
        SagaError: tables of different lengths or data sets.
    """
    earlier.check(later.metadata.get("dataset", earlier.metadata.get("dataset", "")), len(later))
    return 1.0 - float(box_iou(earlier.boxes, later.boxes).mean())
