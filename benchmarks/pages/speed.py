"""Speeds: README's table, the engines, the attention pass, and build-att in several processes."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.pages.markdown import listed, megabytes, table, times
from benchmarks.pages.results import document, find, rows_of
from saga_fast.profile.figures import Row

GRAD_CAM = "pytorch-grad-cam + NumPy boxes"
NETWORK = "resnet50 at 224, channels_last"
PASS, PASS_BF16 = (f"compiled attention pass{kind}, {NETWORK}" for kind in ("", ", bf16"))
ALONE, FOLDER, BOXES = "read and decode alone", "folder, two views", "folder, two views of attention boxes"
MOCO, TORCH = "MoCo v2, folder + augment", "DataLoader (2 workers), torchvision on PIL"
STOCK_DALI, STOCK_FFCV = "two image_random_crop and resize", "two stock FFCV decoders"


class Line(NamedTuple):
    """A line of README's table, and the row that it shows."""

    says: str
    baseline: str
    file: str
    name: str
    against: str


LINES = (
    Line("attention pass, ResNet-50 at 224", "bare forward pass", "bench_attention", PASS, "compiled bare forward"),
    Line("", "bare forward pass in eager mode", "bench_attention", PASS, "bare forward"),
    Line("", "pytorch-grad-cam and NumPy boxes", "bench_attention", PASS, GRAD_CAM),
    Line("the same in bf16", "pytorch-grad-cam and NumPy boxes", "bench_attention", PASS_BF16, GRAD_CAM),
    Line("two cropped views of 500 x 375 JPEGs", "reading and decoding alone", "bench_folder", FOLDER, ALONE),
    Line("", "FFCV: two of its own decoders", "bench_ffcv", "ffcv jpg, two views", STOCK_FFCV),
    Line("", "DALI: two of its own crops", "bench_dali", "dali, two views", STOCK_DALI),
    Line("crops from attention boxes", "plain crops", "bench_folder", BOXES, FOLDER),
    Line("MoCo v2's two finished views", "torch DataLoader, torchvision on PIL", "bench_folder", MOCO, TORCH),
)


def speeds() -> str:
    """README's table, and the noise of its rows."""
    lines = []
    for line in LINES:
        row = find(line.file, line.name, line.against)
        lines.append([line.says, f"{row['images_per_second']:.0f}", line.baseline, times(row["ratio"])])
    hardware = document("bench_folder")["hardware"]
    cpu = f"{hardware['cores']} cores of an {hardware['cpu'].replace('(R)', '')}, no GPU"
    text = table([cpu, "images/s", "baseline", "ratio"], lines)
    files = dict.fromkeys(line.file for line in LINES)
    noise = [abs(row["ratio"] - 1.0) for file in files for row in rows_of(file) if row["name"].startswith("noise")]
    return f"{text}\nMedians of interleaved rounds; a way timed twice differed by {100 * max(noise):.0f} % or less.\n"


def engines() -> str:
    """The engines' rates, against decoding alone or the library's own loader."""
    folder, ffcv = find("bench_folder", FOLDER, ALONE), find("bench_ffcv", "ffcv jpg, two views", STOCK_FFCV)
    raw = find("bench_ffcv", "ffcv raw, two views", STOCK_FFCV)
    planes = find("bench_ffcv", "ffcv yuv420, two views, longer side 256 px", "ffcv raw, as large")
    dali, peer = find("bench_dali", "dali, two views", STOCK_DALI), find("bench_folder", MOCO, TORCH)
    lines: list[tuple[str, Row, str]] = [
        ("`folder`", folder, "reading and decoding alone"),
        ("`ffcv`, packed as JPEG", ffcv, "two of FFCV's own decoders"),
        ("`ffcv`, packed as pixels", raw, "two of FFCV's own decoders"),
        ("`ffcv`, packed as planes, longer side 256 px", planes, "the same images as pixels"),
        ("`dali`", dali, "DALI's own two-view pipeline"),
        ("`folder`, with MoCo v2's augmentation", peer, "torch's DataLoader with torchvision on PIL"),
    ]
    cells = [[name, f"{row['images_per_second']:.0f}", what, times(row["ratio"])] for name, row, what in lines]
    return table(["two views of 500 x 375 JPEGs, two cores", "images/s", "baseline", "ratio"], cells)


def peers() -> str:
    """Two crops by today's loaders."""
    lines = []
    rows = rows_of("bench_peers")
    noise = next(row for row in rows if row["name"].startswith("noise"))
    for row in sorted(rows, key=lambda row: -row["images_per_second"]):
        if row is not noise:
            rate, first = f"{row['images_per_second']:.0f}", f"{row['first_batch_seconds']:.1f} s"
            lines.append([row["name"], rate, first, megabytes(row["memory_bytes"])])
    cores = document("bench_peers")["hardware"]["cores"]
    text = table(["two views of 500 x 375 JPEGs", "images/s", "opened, first batch", "memory"], lines)
    differed = f"one loader in two processes differed by {100 * abs(noise['ratio'] - 1.0):.0f} %"
    return f"{text}\nMedians of {noise['rounds']} rounds on {cores} cores; {differed}.\n"


def token_pass() -> str:
    """The attention pass of a vision transformer and of a ConvNeXt, by score."""
    lines = []
    for row in rows_of("bench_tokens"):
        name, _, _ = row["name"].partition(f", {row['encoder']}")
        if not name.startswith("noise"):
            flops = f"{row['flops'] / row['flops_forward']:.2f}" if "flops" in row else "-"
            says = name.removeprefix("attention pass, ")
            lines.append([row["encoder"], row["precision"], says, f"{row['ratio']:.2f}", flops])
    noise = max(abs(row["ratio"] - 1.0) for row in rows_of("bench_tokens") if row["name"].startswith("noise"))
    text = table(["network at 224 px", "numbers", "score", "speed over a forward pass", "operations"], lines)
    return f"{text}\nA forward pass that was timed twice differed by {100 * noise:.0f} % or less.\n"


def pass_on_cpu() -> str:
    """The attention pass without a GPU."""
    rates = [find("bench_attention", name, GRAD_CAM)["images_per_second"] for name in (PASS, PASS_BF16)]
    return (
        f"The attention pass of a ResNet-50 at 224 px computes {rates[0]:.0f} images/s on two cores, and {rates[1]:.0f}"
        " in bf16 on a processor with AMX.\n"
    )


def pass_precision() -> str:
    """The attention pass in bf16: its speed, and the agreement of its boxes."""
    gain = find("bench_attention", PASS_BF16, GRAD_CAM)["images_per_second"]
    gain /= find("bench_attention", PASS, GRAD_CAM)["images_per_second"]
    rows = [row for row in rows_of("bench_attention") if row["name"].startswith("attention pass, bf16")]
    overlaps = [f"{row['iou']:.2f}" for row in rows]
    compiled = find("bench_attention", PASS, "bare forward")
    return (
        f"On a processor with AMX, `bf16` is {times(gain)} times as fast for a ResNet-50 at 224 px, and its boxes\n"
        f"overlap those of `fp32` by an IoU of {listed(overlaps)} (two untrained networks). Compiling that network\n"
        f"takes {compiled['compile_seconds']:.0f} s and pays from {compiled['breaks_even']} images on.\n"
    )


def build_att_scaling() -> str:
    """build-att in one process and in two."""
    by_name = {row["name"]: row for row in rows_of("bench_scaling")}
    lines = []
    for name in ("1 process", "2 processes"):
        time, memory = by_name[f"build-att, {name}"], by_name[f"memory, {name}"]
        lines.append([name, f"{time['seconds']:.1f} s", times(time["ratio"]), megabytes(memory["bytes"])])
    first = by_name["build-att, 1 process"]
    equal = "equal, bit for bit" if first["equal_tables"] else "not equal"
    text = table(["processes", "wall time", "of the ideal", "memory, all processes"], lines)
    return f"{text}\n{first['images']} demo images, ResNet-18 at 96 px. The two tables are {equal}.\n"


def online() -> str:
    """The cost of the online probe and of RankMe."""
    rows = rows_of("bench_online")
    lines = []
    for row, alone in zip(*([row for row in rows if kind in row] for kind in ("noise", "share")), strict=True):
        name = row["name"].removeprefix("step with the probe, ")
        step = [f"{row['limit']:.2f} s", f"{100 * (1 / row['ratio'] - 1):+.1f} %", f"{100 * row['noise']:.1f} %"]
        lines.append([name, str(row["batch_size"]), *step, f"{100 * alone['share']:.2f} %"])
    head = ["step", "batch", "time", "with the probe", "noise", "the probe's own work"]
    cores = document("bench_online")["hardware"]["cores"]
    largest = [row for row in rows if row["name"].startswith("RankMe")][-1]
    return (
        f"{table(head, lines)}\nMedians of interleaved steps on {'one core' if cores == 1 else f'{cores} cores'};"
        " noise: the difference between two steps without it.\n"
        f"{largest['name']} features, takes {largest['seconds']:.1f} s.\n"
    )
