"""Writes README's table of speeds and FAQ's figures from the committed results: ``python -m benchmarks.readme``.

A test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from saga_fast.profile.figures import Row

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- figures: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
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
SCORES = ("pseudo_label", "background")
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


def rows_of(file: str) -> list[Row]:
    """The rows of ``bench_FILE.json``."""
    path = ROOT / "benchmarks" / "results" / f"bench_{file}.json"
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def found(line: Line) -> Row:
    """The row of the results that a line shows."""
    (row,) = [row for row in rows_of(line.file) if (row["name"], row["against"]) == (line.name, line.against)]
    return row


def speeds() -> str:
    """README's table."""
    text = HEAD
    for line in LINES:
        row = found(line)
        rate = f"{row['images_per_second']:.0f}"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] < 2.0 else f"{row['ratio']:.2g}"
        text += f"| {line.says} | {rate} | {line.beside} | {ratio} |\n"
    return text


def input_sizes() -> str:
    """A line per network and input size: what the pass costs and which boxes it makes."""
    rows = sorted(rows_of("input_size"), key=lambda row: "untrained" in row["network"])
    boxes = {(row["network"], row["size"], row["score"]): row for row in rows if "score" in row}
    text = "| network | input, px | GFLOP | images/s | times the largest's |"
    text += "".join(f" `{score}`: IoU | CorLoc |" for score in SCORES)
    text += "\n" + "|---" * 9 + "|\n"
    for row in rows:
        if "flops" in row:
            rate = f"{row['images_per_second']:.0f}"
            text += f"| {row['network']} | {row['size']} | {row['flops'] / 1e9:.2g} | {rate} | {row['ratio']:.1f} |"
            for score in SCORES:
                box = boxes[row["network"], row["size"], score]
                text += f" {box['accuracy']:.2f} ({100 * box['iou_half']:.0f} %) | {100 * box['corloc']:.0f} % |"
            text += "\n"
    return text


def scaled_decode() -> str:
    """Why the attention pass decodes whole images."""
    rows = rows_of("scaled_decode")
    close = [row for row in rows if row["name"].endswith("at least 1.0 times")]
    wide = [row for row in rows if row["name"].endswith("at least 2.0 times")]
    ratio = {row["name"].split(",")[0].removeprefix("decode and resize "): row["ratio"] for row in close}
    gains = " and ".join(f"{ratio[f'500x375 to {size}']:.2f}" for size in (224, 160))
    overlaps = [row["accuracy"] for row in close if row["name"].startswith("boxes of pseudo_label")]
    low, high = min(overlaps), max(overlaps)
    (gain,) = [row["ratio"] for row in wide if row["name"].startswith("decode and resize 2000x1500")]
    least = min(row["accuracy"] for row in wide if "accuracy" in row)
    return (
        "JPEGs are decoded whole for the pass. Decoded by libjpeg at the smallest eighth of its size that covers the\n"
        f"input, an image of 500 x 375 comes {gains} times as fast to 224 and 160 px (its entropy code is read in any\n"
        f"case), and boxes of `pseudo_label` overlap those of whole decoding by an IoU of {low:.2f} to {high:.2f}; at\n"
        f"twice the input's side it is {least:.2f} and more, and only photos of four times that side gain: those of\n"
        f"2000 x 1500 come {gain:.2f} times as fast (`benchmarks/bench_scaled_decode.py`).\n"
    )


WAYS = {
    "all": "`all`",
    "changed": "`changed`",
    "fraction": "`fraction`: {}",
    "random": "as many, drawn afresh each time: {}",
    "once": "never renewed",
}


def incremental() -> str:
    """A line per way to renew: how many images it looks at, and how right its boxes are."""
    text = "| renewal | images looked at | IoU with the whole renewal's boxes | IoU with the object | CorLoc |\n"
    text += "|---|---|---|---|---|\n"
    for row in rows_of("incremental"):
        way, _, share = row["name"].partition(" ")
        text += f"| {WAYS[way].format(share)} | {100 * row['computed']:.0f} % | {row['ratio']:.3f} |"
        text += f" {row['iou']:.3f} | {100 * row['corloc']:.0f} % |\n"
    return text


def streaming() -> str:
    """What streaming costs a step, and how its boxes compare with the pass's, epoch by epoch."""
    text = (
        "| a step that streams | seconds | beside the step alone | noise | maps of ImageNet |\n|---|---|---|---|---|\n"
    )
    for row in rows_of("streaming"):
        text += f"| {row['name'].removeprefix('streaming step, ')} | {row['seconds']:.2f} |"
        text += f" {100 * (1 / row['ratio'] - 1):+.1f} % | {100 * row['noise']:.1f} % |"
        text += f" {row['bytes_imagenet'] / 1e6:.0f} MB |\n"
    return text


def streamed_boxes() -> str:
    """The boxes that a streaming run has made, beside a whole pass of the same networks."""
    rows = {row["name"]: row for row in rows_of("streamed_boxes")}
    own, whole = rows["as trained, streaming"], rows["whole, at these epochs"]
    text = "| epoch | IoU with the pass's boxes |\n|---|---|\n"
    for epoch, overlap in zip(own["epochs"], own["agreement"], strict=True):
        text += f"| {int(epoch.removeprefix('epoch_'))} | {overlap:.2f} |\n"
    return text + (
        f"\nIoU with the object {own['iou']:.2f} and CorLoc {100 * own['corloc']:.0f} %, where the pass has"
        f" {whole['iou']:.2f} and {100 * whole['corloc']:.0f} %.\n"
    )


PARTS: Mapping[str, Callable[[], str]] = {
    "incremental": incremental,
    "streaming": streaming,
    "streamed boxes": streamed_boxes,
    "speed": speeds,
    "input size": input_sizes,
    "scaled decode": scaled_decode,
}
PAGES = (ROOT / "README.md", ROOT / "docs" / "faq.md", ROOT / "docs" / "renewal.md")


def rewritten(text: str) -> str:
    """A page's text with its parts as the results have them."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")
