"""A few images with their true boxes, the attention boxes of every renewal, and heatmaps."""

import base64
import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from saga_fast.demo_data import true_boxes_file
from saga_fast.errors import SagaError
from saga_fast.evaluate.boxes import find_boxes
from saga_fast.loaders import BoxTable, Source, engines_for, open_source
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.report.heat import Heat, heats, overlay
from saga_fast.report.runs import Run, short_path

IMAGES = 12
RENEWALS = 5  # more boxes on one picture cannot be told apart
THUMBNAIL = 160  # longest side in pixels; smaller images stay as they are, the browser enlarges them

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A box in fractions of the picture's sides, and the CSS classes that style it."""

    style: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A data URI and its text alternative."""

    source: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture as a data URI, with its boxes and its heatmaps."""

    source: str
    width: int
    height: int
    alt: str
    caption: str
    overlap: str
    marks: tuple[Mark, ...]
    heats: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """One run's pictures. ``legend`` pairs CSS classes with their words; ``note`` says what is missing and why.

    ``heats`` names the checkpoints of the tiles' heatmaps, in their order.
    """

    name: str
    legend: tuple[tuple[str, str], ...] = ()
    tiles: tuple[Tile, ...] = ()
    heats: tuple[str, ...] = ()
    note: str = ""


def make_gallery(run: Run) -> Gallery | None:
    """The gallery of a run, None for a run without box tables.

    Images that are gone, or that are not those of the tables, leave a note instead of pictures: the figures of a run
    outlive its images.

    Raises:
        SagaError: a box table or ``boxes.json`` that cannot be read.
    """
    records = [record for record in run.renewals if isinstance(record.get("table"), str)]
    existing = [record for record in records if (run.folder / record["table"]).is_file()]
    if not existing:
        return None
    shown = spread(existing, RENEWALS)
    tables = [(record["epoch"], BoxTable.open(run.folder / record["table"])) for record in shown]
    root = Path(str(run.setting("data.train") or "data.train"))
    try:
        images = open_source(engines_for(root)[0], root)
        for _, table in tables:
            table.check(images.fingerprint, len(images))
    except SagaError:
        name = short_path(str(root))
        return Gallery(name=run.name, note=f"No pictures: {name} is gone, or its images are not those of the boxes.")
    paths = images.paths
    stored = _decoded(images, choose(paths))
    true_boxes = _read_true_boxes(true_boxes_file(root), [paths[i] for i in stored])
    looks = heats(run, [epoch for epoch, _ in tables], list(stored.values()))
    tiles = tuple(
        _tile(run.name, images, index, pixels, tables, true_boxes.get(paths[index], []), looks, place)
        for place, (index, pixels) in enumerate(stored.items())
    )
    known = any(mark.style == "true" for tile in tiles for mark in tile.marks)
    legend = [("true", "true box")] if known else []
    legend += [(s, f"epoch {epoch}") for s, (epoch, _) in zip(_styles(len(tables)), tables, strict=True)]
    hidden = len(existing) - len(shown)
    note = f"{hidden} of {len(existing)} renewals are not drawn." if hidden else ""
    return Gallery(
        name=run.name, legend=tuple(legend), tiles=tiles, heats=tuple(look.words for look in looks), note=note
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items in their order: the first, the last and evenly spaced ones between."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def choose(paths: Sequence[str], count: int = IMAGES) -> list[int]:
    """Indices of at most ``count`` images, the same for the same paths, spread over the classes and within each."""
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_class[path.split("/", 1)[0]].append(index)
    return spread([i for members in by_class.values() for i in spread(members, -(-count // len(by_class)))], count)


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes [x_min, y_min, w, h]; 0 where both are empty."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union > 0 else 0.0


def _decoded(images: Source, indices: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Pixels by index; training lists images that cannot be decoded, the report leaves them out.

    Boxes count in stored pixels, so the EXIF orientation is left out of it, as in the loaders.
    """
    found = {}
    for index in indices:
        with contextlib.suppress(DecodeError, OSError):
            found[index] = decode_image(images.read(index))
    return found


def _tile(
    run_name: str,
    images: Source,
    index: int,
    pixels: npt.NDArray[np.uint8],
    tables: Sequence[tuple[int, BoxTable]],
    true_boxes: Sequence[Sequence[float]],
    looks: Sequence[Heat],
    place: int,
) -> Tile:
    path = images.paths[index]
    small = Image.fromarray(pixels)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    marks, overlaps, words = [], [], []
    for style, (epoch, table) in zip(_styles(len(tables)), tables, strict=True):
        box = table.boxes[index].tolist()
        marks.append(Mark(style=style, box=_rounded(box)))
        word = f"epoch {epoch}" + ("" if table.found[index] else " (nothing found: whole image)")
        if true_boxes:
            overlaps.append(f"{max(box_iou(box, true_box) for true_box in true_boxes):.2f}")
            word += f", IoU {overlaps[-1]}"
        words.append(word)
    marks += [Mark(style="true", box=_rounded(box)) for box in true_boxes]  # last, on top of the others
    truth = ("true box and " if len(true_boxes) == 1 else "true boxes and ") if true_boxes else ""
    return Tile(
        source=_data_uri(small),
        width=small.width,
        height=small.height,
        alt=f"{path} with {truth}attention boxes of {run_name}: {'; '.join(words)}",
        caption=path,
        overlap=f"IoU {' → '.join(dict.fromkeys((overlaps[0], overlaps[-1])))}" if overlaps else "",
        marks=tuple(marks),
        heats=tuple(
            Picture(source=_data_uri(overlay(small, look.maps[place])), alt=f"{path}, heatmap of {look.words}")
            for look in looks
        ),
    )


def _styles(count: int) -> list[str]:
    """CSS classes of the renewals in their order; the last one is drawn thicker."""
    return [f"att-{i} last" if i == count - 1 else f"att-{i}" for i in range(count)]


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rounded(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = (round(float(value), 4) for value in box)
    return x, y, width, height


def _read_true_boxes(path: Path, images: Sequence[str]) -> Mapping[str, list[list[float]]]:
    """As ``saga-fast eval boxes`` reads them; none where there is no file, or none of these images is in it."""
    if not path.is_file():
        return {}
    return {image: boxes.tolist() for image, boxes in find_boxes(path, images).items()}
