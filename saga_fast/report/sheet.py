"""Contact sheets: images with their attention boxes drawn in, as a picture or as a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from saga_fast.attention import box_iou
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, Source
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.loaders.fixed_plans import box_windows
from saga_fast.report.page import environment

Sort = Literal["index", "area", "score", "drift"]
SORTS: tuple[Sort, ...] = get_args(Sort)
TILE = 128  # pixels
COLOUR, OTHER = (255, 225, 77), (94, 200, 255)


def sheet_order(table: BoxTable, sort: Sort, other: BoxTable | None = None) -> tuple[npt.NDArray[np.int64], list[str]]:
    """All images in the order of a figure, and that figure of each in words.

    ``area`` the smallest box first; ``score`` the strongest first; ``drift`` the box that moved most from ``other``
    first; ``index`` the data set's order.

    Raises:
        SagaError: ``drift`` without ``other``, or with one of another length.
    """
    if sort == "drift":
        if other is None:
            raise SagaError("--sort drift needs --other, the table to compare with")
        if len(other) != len(table):
            raise SagaError(f"--other has {len(other)} rows, the table {len(table)}: not the same images")
        moved = 1.0 - box_iou(table.boxes, other.boxes)
        return np.argsort(-moved, kind="stable"), [f"drift {value:.2f}" for value in moved]
    if sort == "score":
        return np.argsort(-table.score, kind="stable"), [f"score {value:.3g}" for value in table.score]
    areas = table.boxes[:, 2] * table.boxes[:, 3]
    order = np.argsort(areas, kind="stable") if sort == "area" else np.arange(len(table))
    return order, [f"area {value:.2f}" for value in areas]


def spread_over(order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of them, evenly from the first to the last."""
    if len(order) <= count:
        return order
    return order[np.linspace(0, len(order) - 1, count).round().astype(np.int64)]


def draw_sheet(
    source: Source, table: BoxTable, rows: Sequence[int], *, columns: int, other: BoxTable | None = None
) -> Image.Image:
    """Images ``rows`` in a grid of TILE px squares, boxes in yellow, those of ``other`` in blue below them.

    An image that cannot be decoded is a grey tile.
    """
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 4) + 4, lines * (TILE + 4) + 4), (32, 34, 38))
    for place, row in enumerate(rows):
        corner = (4 + place % columns * (TILE + 4), 4 + place // columns * (TILE + 4))
        sheet.paste(_tile(source, table, int(row), other), corner)
    return sheet


def sheet_page(
    source: Source, table: BoxTable, rows: Sequence[int], words: Sequence[str], *, title: str, other: BoxTable | None
) -> str:
    """The same as a self-contained HTML page, each image with its path and its figure in words."""
    tiles = []
    for row in rows:
        buffer = io.BytesIO()
        _tile(source, table, int(row), other).save(buffer, "JPEG", quality=85)
        data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        tiles.append((data, source.paths[row], words[row]))
    return environment().get_template("sheet.html.j2").render(title=title, tiles=tiles, compared=other is not None)


def _tile(source: Source, table: BoxTable, row: int, other: BoxTable | None) -> Image.Image:
    try:
        pixels = decode_image(source.read(row))
    except (DecodeError, OSError):
        return Image.new("RGB", (TILE, TILE), (96, 96, 96))
    picture = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    sizes = np.array([[TILE, TILE]])
    for boxes, colour in ((other, OTHER), (table, COLOUR)):
        if boxes is not None:
            top, left, height, width = (int(value) for value in box_windows(boxes.boxes[[row]], sizes)[0])
            draw.rectangle((left, top, left + width - 1, top + height - 1), outline=(0, 0, 0), width=4)
            draw.rectangle((left + 1, top + 1, left + width - 2, top + height - 2), outline=colour, width=2)
    return picture
