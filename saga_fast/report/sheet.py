"""Contact sheets: images with their attention boxes, as a picture or as an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, Source
from saga_fast.loaders.boxes import box_iou, pixel_rectangles
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.report.page import environment

Sort = Literal["index", "area", "score", "drift"]
SORTS: tuple[Sort, ...] = get_args(Sort)
TILE = 128  # pixels
TABLE_COLOUR, REFERENCE_COLOUR = (255, 225, 77), (94, 200, 255)


def sheet_order(
    table: BoxTable, sort: Sort, reference: BoxTable | None = None
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The sorted indices of all images, and each image's caption with its sort figure.

    Args:
        table: N boxes.
        sort: ``area``: smallest box first; ``score``: highest first; ``drift``: largest 1 - IoU with ``reference``
            first; ``index``: the data set's order.
        reference: boxes of the same images, for ``drift``.

    Returns:
        (N,) indices, and N captions in the order of the table.

    Raises:
        SagaError: ``drift`` without ``reference``, or with one of another length.
    """
    if sort == "drift":
        if reference is None:
            raise SagaError("--sort drift needs --other, the table to compare with")
        if len(reference) != len(table):
            raise SagaError(
                f"{len(reference)} rows in --other, {len(table)} in the table: name a table of the same images"
            )
        drift = 1.0 - box_iou(table.boxes, reference.boxes)
        return np.argsort(-drift, kind="stable"), [f"drift {figure:.2f}" for figure in drift]
    if sort == "score":
        return np.argsort(-table.score, kind="stable"), [f"score {figure:.3g}" for figure in table.score]
    areas = table.boxes[:, 2] * table.boxes[:, 3]
    order = np.argsort(areas, kind="stable") if sort == "area" else np.arange(len(table))
    return order, [f"area {figure:.2f}" for figure in areas]


def evenly_spaced(order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of the indices, evenly spaced from the first to the last."""
    if len(order) <= count:
        return order
    return order[np.linspace(0, len(order) - 1, count).round().astype(np.int64)]


def draw_sheet(
    source: Source, table: BoxTable, rows: Sequence[int], *, columns: int, reference: BoxTable | None = None
) -> Image.Image:
    """The images of ``rows`` in a grid of squares, with the boxes of ``table`` in yellow.

    The boxes of ``reference`` are blue and below the yellow ones. An image that cannot be decoded is a grey square.
    """
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 4) + 4, lines * (TILE + 4) + 4), (32, 34, 38))
    for position, row in enumerate(rows):
        corner = (4 + position % columns * (TILE + 4), 4 + position // columns * (TILE + 4))
        sheet.paste(_tile(source, table, int(row), reference), corner)
    return sheet


def sheet_page(
    source: Source,
    table: BoxTable,
    rows: Sequence[int],
    captions: Sequence[str],
    *,
    title: str,
    reference: BoxTable | None,
) -> str:
    """The images of :func:`draw_sheet` as a self-contained HTML page, with paths and captions.

    Args:
        source, table, rows, reference: as of :func:`draw_sheet`.
        captions: one per image of the data set.
        title: the page's heading.
    """
    tiles = []
    for row in rows:
        buffer = io.BytesIO()
        _tile(source, table, int(row), reference).save(buffer, "JPEG", quality=85)
        data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        tiles.append((data, source.paths[row], captions[row]))
    template = environment().get_template("sheet.html.j2")
    return template.render(title=title, tiles=tiles, has_reference=reference is not None)


def _tile(source: Source, table: BoxTable, row: int, reference: BoxTable | None) -> Image.Image:
    try:
        pixels = decode_image(source.read(row))
    except (DecodeError, OSError):
        return Image.new("RGB", (TILE, TILE), (96, 96, 96))
    picture = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    sizes = np.array([[TILE, TILE]])
    for boxes, colour in ((reference, REFERENCE_COLOUR), (table, TABLE_COLOUR)):
        if boxes is not None:
            top, left, height, width = pixel_rectangles(boxes.boxes[[row]], sizes)[0].tolist()
            _outline(draw, (left, top, left + width - 1, top + height - 1), (0, 0, 0), 4)
            _outline(draw, (left + 1, top + 1, left + width - 2, top + height - 2), colour, 2)
    return picture


def _outline(
    draw: ImageDraw.ImageDraw, edges: tuple[int, int, int, int], colour: tuple[int, int, int], width: int
) -> None:
    """Draw a rectangle [left, top, right, bottom]; one that is too narrow for its outline becomes a line or a point."""
    left, top, right, bottom = edges
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
