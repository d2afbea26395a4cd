"""The attention pass beside the bare forward loop and beside pytorch-grad-cam, and attention_boxes beside NumPy boxes.

Ways that go over the same files with the same folder engine, batch size, network and memory format, and take turns:

- *bare forward*: engine, normalisation, ``encoder.features`` in eval mode without gradient; the features are dropped.
- *attention pass*: :func:`saga_fast.attention.build_box_table`, which goes on to channel weights, boxes and the table.
- both of them *compiled* (:mod:`saga_fast.compiled_encoder`), in fp32 and in bf16, compiling left out: a rebuild of a
  data set pays for it once, and ``breaks_even`` says after how many images it has paid.
- *pytorch-grad-cam*: engine, normalisation, ``GradCAM`` as shipped on the last stage with its default target, the
  argmax of z = projector(encoder(x)), then threshold and smallest rectangle per image in NumPy.

The bare forward is there twice: how far its two rows differ is the machine's noise. What the attention pass adds is
also timed alone, on features at hand, because it is smaller than that noise.

Before any timing the boxes are compared. As shipped, grad-cam upsamples bilinearly, we bicubically (DESIGN 1), so
``iou`` is below 1; ``iou_bicubic`` takes grad-cam's own coarse maps, upsampled as ours, and must be above 0.99. The
networks are untrained, which no step's cost depends on.

Run it as ``PYTHONPATH=. python benchmarks/bench_attention.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn

from benchmarks.bench_kernels import DELTA, Boxes, Heatmaps, boxes_of_heatmaps
from benchmarks.images import make_images
from benchmarks.loading import bind, consume
from saga_fast.attention import box_iou, build_box_table
from saga_fast.channel_weights import channel_weights
from saga_fast.compiled_encoder import compiled
from saga_fast.encoder import EncoderConfig
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import ImageFolder, Loader, WholePlan, open_loader
from saga_fast.methods import Method, build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.precision import Precision, autocast, normalized
from saga_fast.profile.figures import Row, Ways, compare, line, time_pairs, write

CPU = torch.device("cpu")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEAST_IOU = 0.99  # with the same upsampling; what is left is float32 rounding at the threshold


def build_model(name: str, size: int, memory_format: torch.memory_format) -> Method:
    """A SimCLR model with fresh weights in eval mode, its stem as EncoderConfig advises for the size."""
    torch.manual_seed(0)
    encoder = EncoderConfig(name=name, stem="imagenet" if size >= 128 else "medium" if size >= 64 else "small")
    return build_method(SimCLRConfig(), encoder).eval().to(memory_format=memory_format)


def prepared(loader: Loader, model: Method, channels_last: bool) -> Any:
    """Batches as (index, images): what every way begins with."""
    for batch in loader:
        yield batch.index, normalized(batch.views, model.encoder, CPU, channels_last=channels_last)[:, 0]


def forward(model: Method, loader: Loader, channels_last: bool, precision: Precision = "fp32") -> list[Tensor]:
    """The bare loop. The features are returned for the step that is timed alone."""
    with torch.no_grad(), autocast(CPU, precision):
        return [model.encoder.features(images) for _, images in prepared(loader, model, channels_last)]


def weights_and_boxes(model: Method, features: list[Tensor], size: int) -> None:
    """What the attention pass does beyond the bare loop, but for filling the table."""
    for part in features:
        weights, _, _ = channel_weights(model.encoder, model.projector, part, "pseudo_label")
        attention_boxes(part, weights, delta=DELTA, size=size)


def upsampled(coarse: Tensor, size: int) -> Heatmaps:
    """Weighted sums (B, u, v) -> ReLU, per-image min-max, bicubic: (B, size, size)."""
    maps = coarse.relu()
    maps = maps - maps.amin((1, 2), keepdim=True)
    maps = maps / maps.amax((1, 2), keepdim=True)
    heatmaps: Heatmaps = F.interpolate(maps[:, None], (size, size), mode="bicubic", align_corners=False)[:, 0].numpy()
    return heatmaps


def boxes_by_grad_cam(model: Method, loader: Loader, channels_last: bool, *, bicubic: bool = False) -> Boxes:
    """The peer. ``bicubic`` upsamples grad-cam's coarse maps as we do, which is for the comparison of boxes."""
    boxes = np.empty((len(loader.source), 4), np.float32)
    last_stage: Any = model.encoder.backbone.layer4
    with GradCAM(nn.Sequential(model.encoder, model.projector), [last_stage[-1]]) as cam:
        for index, images in prepared(loader, model, channels_last):
            heatmaps = cam(images, targets=None)
            if bicubic:
                activations, gradients = (
                    kept[0] for kept in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
                )
                coarse = (gradients.mean((2, 3), keepdim=True) * activations).sum(1)
                heatmaps = upsampled(coarse, loader.plan.size)
            boxes[index.numpy()] = boxes_of_heatmaps(heatmaps)
    model.zero_grad()
    return boxes


def agreement(ours: Boxes, peers: Boxes, key: str = "iou") -> dict[str, float]:
    """Mean IoU, and the fraction of boxes that are equal but for rounding."""
    iou = box_iou(ours, peers)
    return {key: float(iou.mean()), f"{key}_equal": float((iou > 1.0 - 1e-5).mean())}


def bench_pass(
    source: ImageFolder, name: str, *, size: int, layout: str, batch_size: int, threads: int, repeats: int
) -> list[Row]:
    """All rows of one network at one size in one memory format."""
    channels_last = layout == "channels_last"
    model = build_model(name, size, FORMATS[layout])
    loader = open_loader("folder", source, WholePlan(size=size), batch_size=batch_size, threads=threads)
    options: dict[str, Any] = {"delta": DELTA, "channels_last": channels_last, "forward": "eager"}
    attend = partial(build_box_table, model, loader, **options)
    bare = partial(forward, model, loader, channels_last)
    peer = partial(boxes_by_grad_cam, model, loader, channels_last)
    kept = ExitStack()  # of what is compiled
    fast, compiling = _compiled(kept, model, loader, batch_size, channels_last, "fp32")
    fast_bf16, _ = _compiled(kept, model, loader, batch_size, channels_last, "bf16")

    table, table_bf16 = attend(), attend(precision="bf16")
    table_fast = build_box_table(fast, loader, **options)
    agreed = agreement(table.boxes, peer()) | agreement(table.boxes, peer(bicubic=True), "iou_bicubic")
    if agreed["iou_bicubic"] < LEAST_IOU:
        raise SystemExit(f"{name} at {size}: the peer's boxes are not ours, mean IoU {agreed['iou_bicubic']:.3f}")
    features = bare()
    ways: Ways = {
        "forward": bare,
        "attention": attend,
        "grad-cam": peer,
        "forward again": bare,
        "bf16": partial(attend, precision="bf16"),
        "compiled forward": partial(forward, fast, loader, channels_last),
        "compiled attention": partial(build_box_table, fast, loader, **options),
        "compiled bf16 forward": partial(forward, fast_bf16, loader, channels_last, "bf16"),
        "compiled bf16": partial(build_box_table, fast_bf16, loader, precision="bf16", **options),
        "beyond": partial(weights_and_boxes, model, features, size),
        "loader": partial(consume, loader),
    }
    seconds = time_pairs(ways, repeats=repeats)
    kept.close()
    saved = float(np.median(seconds["attention"] - seconds["compiled attention"])) / len(source)  # per image
    pays = {"compile_seconds": compiling, "breaks_even": round(compiling / saved) if saved > 0.0 else None}
    facts: dict[str, Any] = {"encoder": name, "size": size, "layout": layout, "batch": batch_size, "threads": threads}
    facts |= {"rounds": repeats, "found_fraction": table.found_fraction}

    def row(title: str, way: str, other: str, against: str, **more: Any) -> Row:
        title = f"{title}, {name} at {size}, {layout}"
        return compare(title, seconds[way], seconds[other], against=against, images=len(source), **facts, **more)

    compiled_agreed = agreement(table.boxes, table_fast.boxes)
    grad_cam = "pytorch-grad-cam + NumPy boxes"
    return [
        row("attention pass", "attention", "forward", "bare forward", target=0.97),
        row("attention pass", "attention", "grad-cam", grad_cam, target=4.5, **agreed),
        row("attention pass, bf16", "bf16", "grad-cam", grad_cam, **agreement(table.boxes, table_bf16.boxes)),
        row("compiled attention pass", "compiled attention", "compiled forward", "compiled bare forward", target=0.97),
        row("compiled attention pass", "compiled attention", "forward", "bare forward", target=1.2, **pays),
        row("compiled attention pass", "compiled attention", "grad-cam", grad_cam, **compiled_agreed),
        row("compiled attention pass, bf16", "compiled bf16", "compiled bf16 forward", "compiled bf16 bare forward"),
        row("compiled attention pass, bf16", "compiled bf16", "forward", "bare forward"),
        row("compiled attention pass, bf16", "compiled bf16", "grad-cam", grad_cam),
        row("channel weights and boxes alone", "beyond", "forward", "bare forward"),
        row("bare forward", "forward", "loader", "loader alone"),
        row("noise: bare forward, again", "forward again", "forward", "bare forward"),
    ]


def _compiled(
    kept: ExitStack, model: Method, loader: Loader, batch_size: int, channels_last: bool, precision: Precision
) -> tuple[Method, float]:
    """A copy of the model whose encoder stays compiled while ``kept`` is open, and the seconds that compiling took."""
    fast = copy.deepcopy(model)
    kept.enter_context(compiled([fast.encoder], batch_size=batch_size, precision=precision))
    _, images = next(prepared(loader, fast, channels_last))
    begin = time.perf_counter()
    fast.encoder.features(images)
    return fast, time.perf_counter() - begin


def peaked_features(batch: int) -> tuple[Tensor, Tensor]:
    """ResNet-50's last map (batch, 2048, 7, 7) with one soft peak per image, and channel weights (batch, 2048)."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.rand(2, batch, 1, 1, 1, generator=generator) * 7
    grid = torch.arange(7) + 0.5
    peaks = torch.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / 8)
    features = torch.rand(batch, 2048, 7, 7, generator=generator) * peaks
    return features, torch.rand(batch, 2048, generator=generator)


def boxes_by_interpolation(features: Tensor, weights: Tensor, size: int) -> Boxes:
    """The kernel's peer: torch up to the full-size heatmaps, then NumPy image by image."""
    return boxes_of_heatmaps(upsampled(torch.einsum("bc,bcuv->buv", weights, features), size))


def bench_kernel(batch: int, *, layouts: list[str], size: int, repeats: int) -> list[Row]:
    """attention_boxes alone."""
    rows = []
    for layout in layouts:
        features, weights = peaked_features(batch)
        features = features.contiguous(memory_format=FORMATS[layout])
        ours = partial(attention_boxes, features, weights, delta=DELTA, size=size)
        peer = partial(boxes_by_interpolation, features, weights, size)
        facts: dict[str, Any] = {"batch": batch, "channels": 2048, "map": 7, "size": size}
        agreed = agreement(ours()[0].numpy(), peer())
        seconds = time_pairs({"ours": ours, "peer": peer, "read": features.sum}, repeats=repeats)
        comparisons: list[tuple[str, str, dict[str, Any]]] = [
            ("peer", "torch interpolate + NumPy boxes per image", {"target": 50.0, **agreed}),
            ("read", "features.sum(): the features read once", {}),
        ]
        for way, against, more in comparisons:
            row = compare(f"attention_boxes, {layout}", seconds["ours"], seconds[way], against=against, **facts, **more)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--encoder", nargs="+", default=["resnet50", "resnet18"], help="timm's ResNets")
    parser.add_argument("--size", nargs="+", type=int, default=[224, 64], help="input side, one per encoder")
    parser.add_argument("--images", nargs="+", type=int, default=[64, 512], help="images, one number per encoder")
    parser.add_argument("--layout", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds of the passes; the kernel takes seven times as many"
    )
    parser.add_argument("--kernel-batch", type=int, default=256)
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "saga-fast-benchmarks", help="keeps the images"
    )
    arguments = parser.parse_args()
    if not len(arguments.encoder) == len(arguments.size) == len(arguments.images):
        parser.error("--encoder, --size and --images must be equally many")
    if any(images > arguments.batch_size and images % arguments.batch_size for images in arguments.images):
        parser.error("--images must be whole batches: what is left over is not compiled")
    bind(arguments.threads)
    rows = bench_kernel(
        arguments.kernel_batch, layouts=arguments.layout, size=max(arguments.size), repeats=7 * arguments.repeats
    )
    for name, size, images in zip(arguments.encoder, arguments.size, arguments.images, strict=True):
        # Stored images as large beside the input as ImageNet's beside 224, so that decoding has the same weight.
        root = make_images(arguments.data, images, width=round(size * 500 / 224), height=round(size * 375 / 224))
        for layout in arguments.layout:
            rows += bench_pass(
                ImageFolder(root),
                name,
                size=size,
                layout=layout,
                batch_size=arguments.batch_size,
                threads=arguments.threads,
                repeats=arguments.repeats,
            )
    write(arguments.out, rows)
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
