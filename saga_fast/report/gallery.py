"""A few images with their true boxes, the attention boxes of each renewal, and heatmaps."""

import base64
import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from saga_fast.errors import SagaError
from saga_fast.evaluate.boxes import best_iou
from saga_fast.loaders import BoxTable, Source, engines_for, open_source
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.loaders.true_boxes import TrueBoxes, find_true_boxes, true_boxes_file
from saga_fast.report.heat import Heatmaps, checkpoint_heatmaps, overlay
from saga_fast.report.runs import Run, short_path
from saga_fast.runtime.address import as_location, is_address, public_address

IMAGES = 12
RENEWALS = 5  # more boxes on one picture cannot be told apart
THUMBNAIL = 160  # longest side in pixels; smaller images keep their size, the browser enlarges them

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
    heatmaps: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pictures of one run.

    Attributes:
        name: the run's name.
        legend: (CSS classes, label) of each kind of box.
        tiles: the pictures.
        heatmaps: label of each heatmap below a picture, in the order of the tiles' heatmaps.
        note: what is missing, and why.
    """

    name: str
    legend: tuple[tuple[str, str], ...] = ()
    tiles: tuple[Tile, ...] = ()
    heatmaps: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Overlays:
    """What the tiles of a run draw onto the images.

    Attributes:
        run_name: the run's name, for the text alternatives.
        tables: (epoch, boxes) of the renewals, oldest first.
        true_boxes: the true boxes of those images that have any.
        heatmaps: the heatmaps of each checkpoint.
    """

    run_name: str
    tables: Sequence[tuple[int, BoxTable]]
    true_boxes: TrueBoxes
    heatmaps: Sequence[Heatmaps]


def make_gallery(run: Run) -> Gallery | None:
    """The gallery of a run, None for a run without box tables.

    If the images were deleted or changed since the run, or are at an address, the gallery is a note without pictures:
    the rest of the report is still valid. Nothing is fetched on behalf of a run folder, which may be a stranger's.

    Raises:
        SagaError: a box table or ``boxes.json`` that cannot be read.
    """
    records = [record for record in run.renewals if isinstance(record.get("table"), str)]
    existing = [record for record in records if (run.folder / record["table"]).is_file()]
    if not existing:
        return None
    shown = spread(existing, RENEWALS)
    tables = [(record["epoch"], BoxTable.open(run.folder / record["table"])) for record in shown]
    root = as_location(str(run.setting("data.train") or "data.train"))
    if is_address(root):
        return Gallery(
            name=run.name, note=f"No pictures: images at an address, {public_address(root)}, are not fetched."
        )
    try:
        images = open_source(engines_for(root)[0], root)
        for _, table in tables:
            table.check(images.fingerprint, len(images))
    except SagaError:
        name = short_path(str(root))
        return Gallery(name=run.name, note=f"No pictures: {name} is missing, or its images changed since the run.")
    decoded = _decode(images, choose(images.paths))
    overlays = _Overlays(
        run_name=run.name,
        tables=tables,
        true_boxes=_read_true_boxes(true_boxes_file(root), [images.paths[i] for i in decoded]),
        heatmaps=checkpoint_heatmaps(run, [epoch for epoch, _ in tables], list(decoded.values())),
    )
    hidden = len(existing) - len(shown)
    return Gallery(
        name=run.name,
        legend=_legend(overlays),
        tiles=tuple(
            _tile(overlays, images.paths[index], index, pixels, position)
            for position, (index, pixels) in enumerate(decoded.items())
        ),
        heatmaps=tuple(heatmaps.label for heatmaps in overlays.heatmaps),
        note=f"{hidden} of {len(existing)} renewals are not drawn." if hidden else "",
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items in their order: the first, the last and evenly spaced ones between."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def choose(paths: Sequence[str], count: int = IMAGES) -> list[int]:
    """Indices of at most ``count`` images, spread over the classes and within each class.

    The choice depends on the paths alone.
    """
    by_class: defaultdict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_class[path.split("/", 1)[0]].append(index)
    return spread([i for members in by_class.values() for i in spread(members, -(-count // len(by_class)))], count)


def _decode(images: Source, indices: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Pixels of the images by index; images that cannot be decoded are left out.

    The EXIF orientation is not applied, as in the loaders: boxes refer to the stored pixels.
    """
    decoded = {}
    for index in indices:
        with contextlib.suppress(DecodeError, OSError):
            decoded[index] = decode_image(images.read(index))
    return decoded


def _legend(overlays: _Overlays) -> tuple[tuple[str, str], ...]:
    styles = _styles(len(overlays.tables))
    attention = [(style, f"epoch {epoch}") for style, (epoch, _) in zip(styles, overlays.tables, strict=True)]
    return (*([("true", "true box")] if overlays.true_boxes else []), *attention)


def _tile(overlays: _Overlays, path: str, index: int, pixels: npt.NDArray[np.uint8], position: int) -> Tile:
    """The tile of image ``index`` of the data set, which is image ``position`` of the gallery."""
    thumbnail = Image.fromarray(pixels)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    true_boxes = overlays.true_boxes.get(path)
    marks, overlaps, descriptions = [], [], []
    for style, (epoch, table) in zip(_styles(len(overlays.tables)), overlays.tables, strict=True):
        marks.append(Mark(style=style, box=_rounded(table.boxes[index])))
        description = f"epoch {epoch}" + ("" if table.found[index] else " (nothing found: whole image)")
        if true_boxes is not None:
            overlaps.append(f"{best_iou(table.boxes[[index]], [true_boxes])[0]:.2f}")
            description += f", IoU {overlaps[-1]}"
        descriptions.append(description)
    truth = ""
    if true_boxes is not None:
        # Last, so that they are drawn on top of the attention boxes.
        marks += [Mark(style="true", box=_rounded(box)) for box in true_boxes]
        truth = "true box and " if len(true_boxes) == 1 else "true boxes and "
    return Tile(
        source=_data_uri(thumbnail),
        width=thumbnail.width,
        height=thumbnail.height,
        alt=f"{path} with {truth}attention boxes of {overlays.run_name}: {'; '.join(descriptions)}",
        caption=path,
        overlap=f"IoU {' → '.join(dict.fromkeys((overlaps[0], overlaps[-1])))}" if overlaps else "",
        marks=tuple(marks),
        heatmaps=tuple(
            Picture(
                source=_data_uri(overlay(thumbnail, heatmaps.maps[position])),
                alt=f"{path}, heatmap of {heatmaps.label}",
            )
            for heatmaps in overlays.heatmaps
        ),
    )


def _styles(count: int) -> list[str]:
    """CSS classes of the renewals in their order; the last one is drawn thicker."""
    return [f"att-{i} last" if i == count - 1 else f"att-{i}" for i in range(count)]


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rounded(box: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    x, y, width, height = (round(float(side), 4) for side in box)
    return x, y, width, height


def _read_true_boxes(path: Path, images: Sequence[str]) -> TrueBoxes:
    """The true boxes of those ``images`` that have any; empty if there is no file."""
    return find_true_boxes(path, images) if path.is_file() else {}
