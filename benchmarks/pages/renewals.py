"""The attention pass as a renewal: input size, scaled decoding, incremental renewals, share of training, memory."""

from __future__ import annotations

from benchmarks.pages.markdown import METHOD_NAMES, listed, megabytes, points, table
from benchmarks.pages.results import commit_of, find, rows_of

SCORES = ("pseudo_label", "background")
WAYS = {
    "all": "`all`",
    "changed": "`changed`",
    "once": "never renewed",
    "random": "{} of the images, drawn for each renewal",
}
"""Ways to renew; the rows of ``fraction``, which the package no longer has, are left out."""


def input_sizes() -> str:
    """A line per network and input size: the cost of the pass, and its boxes."""
    rows = sorted(rows_of("bench_input_size"), key=lambda row: "untrained" in row["network"])
    boxes = {(row["network"], row["size"], row["score"]): row for row in rows if "score" in row}
    lines = []
    for row in rows:
        if "flops" not in row:
            continue
        cells = [row["network"], str(row["size"]), f"{row['flops'] / 1e9:.2g}", f"{row['images_per_second']:.0f}"]
        cells.append(f"{row['ratio']:.1f}")
        for score in SCORES:
            box = boxes[row["network"], row["size"], score]
            cells += [f"{box['accuracy']:.2f} ({100 * box['iou_half']:.0f} %)", f"{100 * box['corloc']:.0f} %"]
        lines.append(cells)
    head = ["network", "input, px", "GFLOP", "images/s", "times the largest's"]
    return table([*head, *(part for score in SCORES for part in (f"`{score}`: IoU", "CorLoc"))], lines)


def scaled_decode() -> str:
    """Why the attention pass decodes whole images."""
    rows = rows_of("bench_scaled_decode")
    close = [row for row in rows if row["name"].endswith("at least 1.0 times")]
    wide = [row for row in rows if row["name"].endswith("at least 2.0 times")]
    ratio = {row["name"].split(",")[0].removeprefix("decode and resize "): row["ratio"] for row in close}
    gains = listed([f"{ratio[f'500x375 to {size}']:.2f}" for size in (224, 160)])
    overlaps = [row["accuracy"] for row in close if row["name"].startswith("boxes of pseudo_label")]
    low, high = min(overlaps), max(overlaps)
    (gain,) = [row["ratio"] for row in wide if row["name"].startswith("decode and resize 2000x1500")]
    least = min(row["accuracy"] for row in wide if "accuracy" in row)
    return (
        "JPEGs are decoded whole for the pass. If libjpeg decodes at the smallest eighth of the size that covers\n"
        f"the input, an image of 500 x 375 is decoded {gains} times as fast to 224 and 160 px (its entropy\n"
        "code is read in any case), and boxes of `pseudo_label` overlap those of whole decoding by an IoU of\n"
        f"{low:.2f} to {high:.2f}. At twice the input's side the IoU is at least {least:.2f}, but only photographs of\n"
        f"four times that side gain: those of 2000 x 1500 are decoded {gain:.2f} times as fast\n"
        "(`benchmarks/bench_scaled_decode.py`).\n"
    )


def incremental() -> str:
    """A line per way to renew: the images that it computes, and the quality of its boxes."""
    lines = []
    for row in rows_of("bench_incremental"):
        way, _, share = row["name"].partition(" ")
        if way not in WAYS:
            continue
        name = WAYS[way].format(f"{100 * float(share):.0f} %" if share else "")
        quality = [f"{row['ratio']:.3f}", f"{row['iou']:.3f}", f"{100 * row['corloc']:.0f} %"]
        lines.append([name, f"{100 * row['computed']:.0f} %", *quality])
    head = ["renewal", "images computed", "IoU with the whole renewal's boxes", "IoU with the object", "CorLoc"]
    return table(head, lines)


def renewal_share() -> str:
    """The share of training time that renewals take every ten epochs."""
    rows = [row for row in rows_of("bench_renewal_resnet18") if row["name"].startswith("renewal")]
    rows += [row for row in rows_of("bench_renewal") if row["name"].endswith("resnet50 at 224")]
    lines = []
    for row in rows:
        _, method, network = row["name"].split(", ")
        shares = [f"{100 * row[key]:.1f} %" for key in ("share_of_training", "floor_share")]
        lines.append([METHOD_NAMES[method], network.replace("resnet", "ResNet-"), *shares])
    head = ["method", "network", "a renewal's share of ten epochs", "at the speed of training's forward passes"]
    return table(head, lines)


def pass_memory() -> str:
    """Memory and time of a pass over as many images as ImageNet has."""
    file, count = "bench_renewal_resnet18", 1281167
    memory = find(file, f"attention pass and listing, {count} images")["bytes"]
    listing, saving = (
        find(file, f"{name}, {count} images")["seconds"]
        for name in ("listing and fingerprint", "table saved, opened and checked")
    )
    return (
        f"An attention pass over {count:,} images, as many as ImageNet has, takes {megabytes(memory)} in addition\n"
        f"to the model and its batches. Listing their names takes {listing:.1f} s, and saving, opening and checking\n"
        f"the table {saving:.1f} s.\n"
    )


def streaming() -> str:
    """The cost of streaming renewals per step, and the quality of their boxes."""
    lines = []
    for row in rows_of("bench_streaming"):
        lines.append(
            [
                row["name"].removeprefix("streaming step, "),
                f"{row['seconds']:.2f}",
                f"{100 * (1 / row['ratio'] - 1):+.1f} %",
                f"{100 * row['noise']:.1f} %",
                megabytes(row["bytes_imagenet"]),
            ]
        )
    cost = table(["a step that streams", "seconds", "more than the step alone", "noise", "maps of ImageNet"], lines)
    rows = {row["name"]: row for row in rows_of("bench_streamed_boxes")}
    made, whole = rows["as trained, streaming"], rows["whole, at these epochs"]
    low, high = min(made["agreement"]), max(made["agreement"])
    quality = f"IoU {made['iou']:.2f} with the object and CorLoc {100 * made['corloc']:.0f} %"
    passes = f"{whole['iou']:.2f} and {100 * whole['corloc']:.0f} %"
    commits = f"{commit_of('bench_streaming')}, boxes at commit {commit_of('bench_streamed_boxes')}"
    return (
        f"{cost}\nThe boxes of {len(made['agreement'])} renewals of the first `saga+`, trained with streaming\n"
        f"from scratch: IoU {low:.2f} to {high:.2f} with the boxes of a pass by the same networks, {quality};\n"
        f"the passes had {passes}. Steps were measured at commit {commits}.\n"
    )


def demo() -> str:
    """kNN of all methods on the demo's images, and the IoU of their boxes with the objects."""
    rows = rows_of("demo_methods")
    epochs = sorted(int(epoch) for epoch in rows[0]["knn"])
    shown = (epochs[0], epochs[-2], epochs[-1])
    lines = []
    for row in rows:
        method, _, _ = row["name"].partition(",")
        knn = [f"{100 * row['knn'][str(epoch)]:.1f}" for epoch in shown]
        lines.append([METHOD_NAMES.get(method, method), *knn, f"{row['box_iou'][-1]:.2f}"])
    after = [f"after {shown[1]} plain epochs", f"after {shown[2] - shown[1]} SAGA epochs"]
    return table(["method", "kNN, %: untrained", *after, "IoU of the boxes"], lines)


def objectives() -> str:
    """kNN of BYOL and DINO on the demo's images: plain, and after as many further epochs of both kinds."""
    arms: dict[str, dict[str, list[float]]] = {}
    for row in rows_of("demo_byol_dino"):
        method, _, arm = row["name"].split(", ")
        arms.setdefault(method, {}).setdefault(arm, []).append(row["accuracy"])
    lines = []
    for method, of in arms.items():
        gains = [plus - tuned for plus, tuned in zip(of["saga_plus"], of["finetune"], strict=True)]
        values = [points(of[arm]) for arm in ("plain", "finetune", "saga_plus")] + [points(gains, signed=True)]
        lines.append([METHOD_NAMES[method], *values])
    return table(["kNN, %", "plain", "fine-tuning", "`saga+`", "`saga+` over fine-tuning"], lines)
