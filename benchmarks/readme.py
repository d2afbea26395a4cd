"""Writes README's table of speeds from the committed results: ``python -m benchmarks.readme``; a test compares."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from saga_fast.profile.figures import Row

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PART = re.compile(r"(<!-- speed -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = "| on two cores of a Xeon server, no GPU | images/s | beside | ratio |\n|---|---|---|---|\n"
PASS = [f"compiled attention pass{more}, resnet50 at 224, channels_last" for more in ("", ", bf16")]


class Line(NamedTuple):
    """A row of the table: what it says, and which row of which results it is."""

    says: str
    beside: str
    file: str
    name: str
    against: str


GRAD_CAM = "pytorch-grad-cam + NumPy boxes"
ALONE, PLAIN, ATTENTION = "read and decode alone", "folder, two views", "folder, two views of attention boxes"
MOCO, TORCH = "MoCo v2, folder + augment", "DataLoader (2 workers), torchvision on PIL"
CROPS = "two image_random_crop and resize"
LINES = (
    Line("attention pass, ResNet-50 at 224", "the bare forward pass", "attention", PASS[0], "compiled bare forward"),
    Line("", "the bare forward pass in eager mode", "attention", PASS[0], "bare forward"),
    Line("", "pytorch-grad-cam and NumPy boxes", "attention", PASS[0], GRAD_CAM),
    Line("the same in bf16", "pytorch-grad-cam and NumPy boxes", "attention", PASS[1], GRAD_CAM),
    Line("two cropped views of 500 x 375 JPEGs", "reading and decoding alone", "folder", PLAIN, ALONE),
    Line("", "FFCV: two of its own decoders", "ffcv", "ffcv jpg, two views", "two stock FFCV decoders"),
    Line("", "DALI: two of its own crops", "dali", "dali, two views", CROPS),
    Line("crops from attention boxes", "plain crops", "folder", ATTENTION, PLAIN),
    Line("MoCo v2's two finished views", "torch DataLoader, torchvision on PIL", "folder", MOCO, TORCH),
)


def found(line: Line) -> Row:
    """The row of the results that a line shows."""
    rows = json.loads((ROOT / "benchmarks" / "results" / f"bench_{line.file}.json").read_text(encoding="utf-8"))["rows"]
    (row,) = [row for row in rows if (row["name"], row["against"]) == (line.name, line.against)]
    return dict(row)


def table() -> str:
    """The table as Markdown."""
    text = HEAD
    for line in LINES:
        row = found(line)
        rate = f"{row['images_per_second']:.0f}"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] < 2.0 else f"{row['ratio']:.2g}"
        text += f"| {line.says} | {rate} | {line.beside} | {ratio} |\n"
    return text


def rewritten(text: str) -> str:
    """README's text with the table as the results have it."""
    return PART.sub(lambda part: f"{part[1]}{table()}{part[2]}", text)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
