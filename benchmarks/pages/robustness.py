"""Faults that were injected, a run beside other processes, and sizes that are computed rather than measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.pages.markdown import megabytes, table, times
from benchmarks.pages.results import commit_of, find, rows_of
from saga_fast.profile.rebuild import ROW_BYTES

IMAGENET = 1_281_167
TABLE_ROW = 25
"""Bytes of an image in a box table: a box, found, the pseudo label and the score."""
NAME_ROW = 56
"""Bytes of an image in a listing: a name of 39 bytes with a zero byte, where it ends, and its label."""
BANK_ROW = 512
"""Bytes of an image in a memory bank: 128 float32."""
JPEG = 110_000
"""Bytes of ImageNet's mean JPEG: assumed."""
GPUS = 8
"""Per machine, with a process each."""


def torture() -> str:
    """The kinds of faults, with the numbers injected and survived."""
    kinds = {"fuzz folder": "fuzz folder, of 50 images"}
    lines = [
        [kinds.get(row["name"], str(row["name"])), f"{row['faults']:,}", f"{row['survived']:,}", str(row["data_lost"])]
        for row in rows_of("torture")
    ]
    text = table(["kind", "faults", "survived", "data lost"], lines)
    return f"{text}\nMeasured at commit {commit_of('torture')}.\n"


def busy() -> str:
    """The rate of a run beside busy processes, as a part of its fair share, by what OpenMP's threads do at barriers."""
    arms = ("adaptive", "sleeping", "spinning")
    shares = {row["name"]: row for row in rows_of("bench_busy")}
    places = [name.removeprefix("adaptive, ") for name in shares if name.startswith("adaptive, ")]
    lines = []
    for place in places:
        rows = [shares[f"{arm}, {place}"] for arm in arms]
        rates = [f"{row['images_per_second']:.0f}" for row in rows]
        lines.append([place, *rates, *(["", "", ""] if place == "alone" else [times(row["ratio"]) for row in rows])])
    heads = ["training the demo's network", "images/s, as the commands do", "sleeping", "spinning"]
    return table([*heads, "of a fair share, as the commands do", "sleeping", "spinning"], lines)


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A data set, and the machines that train on it."""

    title: str
    images: int
    machines: int


def large_set() -> str:
    """The memory of all processes after each step, and the time of the slowest."""
    lines = [
        [str(row["name"]), megabytes(row["bytes"]), f"{row['seconds']:,.1f} s"] for row in rows_of("bench_large_set")
    ]
    text = table(["step", "memory of all processes", "seconds"], lines)
    commit = commit_of("bench_large_set")
    return f"{text}\nMemory that is not a page of a file, in excess of imports; measured at commit {commit}.\n"


def capacity() -> str:
    """Sizes and times of large data sets, computed from the sizes of a row and from assumed rates."""
    plants = (
        Plant(title="ImageNet, 8 GPUs", images=IMAGENET, machines=1),
        Plant(title="ImageNet, 8 x 8", images=IMAGENET, machines=8),
        Plant(title="1e9 images, 8 x 8", images=10**9, machines=8),
    )
    rate = GPUS * find("gpu", "build_box_table, ready batches, bf16, eager, batch 256")["images_per_second"]
    lines = [
        ["box table", *(megabytes(TABLE_ROW * plant.images) for plant in plants)],
        [
            "box tables while they are built, per machine",
            *(megabytes(GPUS * TABLE_ROW * plant.images) for plant in plants),
        ],
        [
            f"names and labels on disk, per machine, {NAME_ROW} bytes each",
            *(megabytes(NAME_ROW * plant.images) for plant in plants),
        ],
        ["memory bank (InsDis, PIRL), per GPU", *(megabytes(BANK_ROW * plant.images) for plant in plants)],
        [
            "attention pass at the network's rate",
            *(f"{plant.images / (rate * plant.machines):,.1f} s" for plant in plants),
        ],
        ["images/s that a machine's loader must decode for it", *(f"{rate:,.0f}" for _ in plants)],
        ["bytes/s that a machine must read for it", *(megabytes(rate * JPEG) for _ in plants)],
        [
            f"gathered rows, {ROW_BYTES} bytes each, per process",
            *(megabytes(ROW_BYTES * plant.images) for plant in plants),
        ],
    ]
    return table(["", *(plant.title for plant in plants)], lines)
