"""Speeds on a GPU: README's second table, from ``benchmarks/results/gpu.json`` once it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.pages.markdown import table, times
from benchmarks.pages.results import RESULTS, document
from saga_fast.profile.figures import Row

FILE = "gpu"


class Line(NamedTuple):
    """A line of the table: ``name`` is a row's, ``against`` the beginning of its baseline."""

    says: str
    baseline: str
    name: str
    against: str = ""


PASS = "build_box_table, ready batches, bf16, {}, batch 256"
LINES = (
    Line("attention pass, ResNet-50 at 224, bf16", "bare forward pass", PASS.format("eager")),
    Line("the same, compiled", "compiled bare forward pass", PASS.format("compiled")),
    Line("the same on its own", "pytorch-grad-cam and NumPy boxes", "attention pass", "pytorch-grad-cam"),
    Line("rebuild from a folder of JPEGs, nvJPEG", "loading alone", "rebuild, folder, decode gpu, crop gpu"),
    Line(
        "the same for ImageNet's 1.28 M images, predicted",
        "4 minutes",
        "rebuild of 1,281,167 images, folder, decode gpu, crop gpu, predicted",
    ),
    Line("rebuild from packed JPEGs, FFCV", "loading alone", "rebuild, ffcv, decode cpu, crop gpu"),
    Line("SimCLR's training step, bf16", "the step on ready views", "training step, simclr, bf16"),
    Line("MoCo v2's training step, bf16", "the step on ready views", "training step, mocov2, bf16"),
    Line("two crops each of 256 images", "torchvision, view by view", "crop_resize", "torchvision"),
    Line("attention boxes of 256 images", "eager torch", "attention_boxes, batch 256, bf16, channels_last", "eager"),
    Line(
        "MoCo v2's augmentation of 512 views",
        "torchvision, one draw for all views",
        "augment",
        "torchvision v2 on the device, one draw",
    ),
    Line("the same", "kornia", "augment", "kornia"),
)


def speeds() -> str:
    """README's table of a GPU; nothing before a GPU was measured."""
    return speeds_of(document(FILE)) if (RESULTS / f"{FILE}.json").exists() else ""


def speeds_of(content: Mapping[str, Any]) -> str:
    """The table of a file of results. Lines without a row are left out: sections may fail on their own."""
    rows: Sequence[Row] = [row for row in content["rows"] if "error" not in row]
    lines = []
    for line in LINES:
        found = [row for row in rows if row["name"] == line.name and row["against"].startswith(line.against)]
        if found:
            lines.append([line.says, figure(found[0]), line.baseline, times(found[0]["ratio"])])
    hardware = content["hardware"]
    return table([f"{hardware['gpu']}, {hardware['cores']} cores", "speed", "baseline", "ratio"], lines)


def engines() -> str:
    """docs/engines.md's table: two views of JPEGs, images/s of each engine on a GPU's machine."""
    content = document(FILE)
    rows = [row for row in content["rows"] if row["section"] == "engines" and "error" not in row]
    lines = []
    for row in rows:
        engine, decode, crop = row["name"].removeprefix("engine ").split(", ")
        places = [place.partition(" ")[2] for place in (decode, crop)]
        lines.append([f"`{engine}`", *places, f"{row['images_per_second']:.0f}", times(row["ratio"])])
    hardware = content["hardware"]
    head = [f"{hardware['gpu']}, {hardware['cores']} cores", "decode", "crop", "images/s", "of the first"]
    return f"{table(head, lines)}\nMedians of three epochs of {rows[0]['images']} images, two views of 224 px each.\n"


def figure(row: Row) -> str:
    """A rate or a time with its unit."""
    if "images_per_second" in row:
        return f"{row['images_per_second']:.0f} images/s"
    seconds: float = row["seconds"]
    return f"{seconds:.0f} s" if seconds >= 10.0 else f"{1e3 * seconds:.3g} ms"
