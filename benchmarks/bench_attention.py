"""The attention pass against the bare forward pass and pytorch-grad-cam, and attention_boxes against NumPy boxes.

The ways visit the same files with the same folder engine, batch size, network and memory format, and take turns:

- *bare forward*: engine, normalisation, ``encoder.features`` in eval mode without gradient; the features are dropped.
- *attention pass*: :func:`saga_fast.attention.build_box_table`, which goes on to channel weights, boxes and the table.
- both of them *compiled* (:mod:`saga_fast.models.compiled_features`), in fp32 and in bf16, without the compiling: a
  rebuild pays for it once, and ``breaks_even`` is the number of images after which it has paid.
- *pytorch-grad-cam*: engine, normalisation, ``GradCAM`` as shipped on the last stage with its default target, the
  argmax of z = projector(encoder(x)), then threshold and smallest rectangle per image in NumPy.

The bare forward is timed twice: the difference of its two rows is the machine's noise. What the attention pass adds is
also timed alone, on features in memory, because it is smaller than that noise.

Boxes are compared before any timing. As shipped, grad-cam upsamples bilinearly, we bicubically, so ``iou`` is below 1;
``iou_bicubic`` upsamples grad-cam's own coarse maps as ours, and must be above LEAST_IOU. The networks are untrained,
which does not change the cost of a step.

Run it as ``PYTHONPATH=. python benchmarks/bench_attention.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn

from benchmarks.images import make_images
from benchmarks.kernel_peers import DELTA, Boxes, boxes_of_heatmaps, peaked_features, upsampled
from benchmarks.loading import consume
from benchmarks.networks import bare_forward, untrained_model, whole_images
from benchmarks.scaffold import Pair, add_data, add_threads, benchmark_parser, compare_pairs, record, use_cores
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.channel_weights import channel_weights
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.boxes import box_iou
from saga_fast.methods import Method
from saga_fast.models.compiled_features import compiled_features
from saga_fast.profile.figures import Row, Seconds, Ways, compare, time_pairs

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEAST_IOU = 0.99
"""Between the peer's boxes and ours, upsampled alike: float32 rounds differently at the threshold."""
GRAD_CAM = "pytorch-grad-cam + NumPy boxes"


@dataclass(frozen=True, kw_only=True)
class NetworkBench:
    """One network at one size in one memory format.

    Attributes:
        encoder: one of timm's ResNets.
        loader: whole images.
        options: the eager pass in fp32.
        threads: cores of this process.
        repeats: rounds, in each of which every way is timed once.
    """

    encoder: str
    layout: str
    model: Method
    loader: Loader
    options: AttentionPass
    threads: int
    repeats: int


def boxes_by_grad_cam(bench: NetworkBench, *, bicubic: bool = False) -> Boxes:
    """The peer. ``bicubic`` upsamples grad-cam's coarse maps as we do, which is for the comparison of boxes."""
    model, loader = bench.model, bench.loader
    boxes = np.empty((len(loader.source), 4), np.float32)
    last_stage: Any = model.encoder.backbone.layer4
    with GradCAM(nn.Sequential(model.encoder, model.projector), [last_stage[-1]]) as cam:
        for index, images in whole_images(model, loader, bench.options):
            heatmaps = cam(images, targets=None)
            if bicubic:
                recorded = cam.activations_and_grads
                weights = recorded.gradients[0].mean((2, 3), keepdim=True)
                heatmaps = upsampled((weights * recorded.activations[0]).sum(1), loader.plan.size).numpy()
            boxes[index.numpy()] = boxes_of_heatmaps(heatmaps)
    model.zero_grad()
    return boxes


def weights_and_boxes(bench: NetworkBench, features: list[Tensor]) -> None:
    """The work of the attention pass after the bare forward pass, except for filling the table."""
    for part in features:
        weights, _, _ = channel_weights(bench.model.encoder, bench.model.projector, part, "pseudo_label")
        attention_boxes(part, weights, delta=DELTA, size=bench.options.size)


def agreement(boxes: Boxes, peers: Boxes, key: str = "iou") -> Row:
    """Mean IoU, and the fraction of boxes that are equal except for rounding."""
    iou = box_iou(boxes, peers)
    return {key: float(iou.mean()), f"{key}_equal": float((iou > 1.0 - 1e-5).mean())}


def checked_agreement(bench: NetworkBench, boxes: Boxes) -> Row:
    """The agreement of our boxes with the peer's, as shipped and upsampled as ours.

    Raises:
        SystemExit: the peer's boxes, upsampled as ours, are not ours.
    """
    agreed = agreement(boxes, boxes_by_grad_cam(bench))
    agreed |= agreement(boxes, boxes_by_grad_cam(bench, bicubic=True), "iou_bicubic")
    if agreed["iou_bicubic"] < LEAST_IOU:
        raise SystemExit(f"{bench.encoder}: the peer's boxes are not ours, mean IoU {agreed['iou_bicubic']:.3f}")
    return agreed


def compiled_copy(stack: ExitStack, bench: NetworkBench, options: AttentionPass) -> tuple[Method, float]:
    """A copy of the model whose encoder is compiled until ``stack`` closes, and the seconds of compiling."""
    fast, batch_size = copy.deepcopy(bench.model), bench.loader.global_batch_size
    stack.enter_context(compiled_features([fast.encoder], batch_size=batch_size, precision=options.precision))
    _, images = next(whole_images(fast, bench.loader, options))
    begin = time.perf_counter()
    fast.encoder.features(images)
    return fast, time.perf_counter() - begin


def time_pass(bench: NetworkBench) -> Iterator[Row]:
    """All rows of one network."""
    options, loader = bench.options, bench.loader
    bf16 = replace(options, precision="bf16")
    table = build_box_table(bench.model, loader, options)
    agreed = checked_agreement(bench, table.boxes)
    agreed_bf16 = agreement(table.boxes, build_box_table(bench.model, loader, bf16).boxes)
    with ExitStack() as stack:
        fast, compile_seconds = compiled_copy(stack, bench, options)
        fast_bf16, _ = compiled_copy(stack, bench, bf16)
        agreed_compiled = agreement(table.boxes, build_box_table(fast, loader, options).boxes)
        bare = partial(bare_forward, bench.model, loader, options)
        ways: Ways = {
            "forward": bare,
            "attention": partial(build_box_table, bench.model, loader, options),
            "grad-cam": partial(boxes_by_grad_cam, bench),
            "forward again": bare,
            "bf16": partial(build_box_table, bench.model, loader, bf16),
            "compiled forward": partial(bare_forward, fast, loader, options),
            "compiled attention": partial(build_box_table, fast, loader, options),
            "compiled bf16 forward": partial(bare_forward, fast_bf16, loader, bf16),
            "compiled bf16": partial(build_box_table, fast_bf16, loader, bf16),
            "beyond": partial(weights_and_boxes, bench, bare()),
            "loader": partial(consume, loader),
        }
        seconds = time_pairs(ways, repeats=bench.repeats)
    saved = float(np.median(seconds["attention"] - seconds["compiled attention"])) / len(loader.source)
    breaks_even = round(compile_seconds / saved) if saved > 0.0 else None
    more: dict[tuple[str, str], Row] = {
        ("attention", "grad-cam"): agreed,
        ("bf16", "grad-cam"): agreed_bf16,
        ("compiled attention", "grad-cam"): agreed_compiled,
        ("compiled attention", "forward"): {"compile_seconds": compile_seconds, "breaks_even": breaks_even},
    }
    yield from rows_of_pass(bench, seconds, more, found_fraction=table.found_fraction)


def rows_of_pass(
    bench: NetworkBench,
    seconds: dict[str, Seconds],
    more: dict[tuple[str, str], Row],
    *,
    found_fraction: float,
) -> Iterator[Row]:
    """The rows of the timings; ``more`` has further columns of the row of a way and its baseline."""
    fast, fast_bf16 = "compiled attention pass", "compiled attention pass, bf16"
    pairs = (
        Pair("attention pass", "attention", "forward", "bare forward", 0.97),
        Pair("attention pass", "attention", "grad-cam", GRAD_CAM, 4.5),
        Pair("attention pass, bf16", "bf16", "grad-cam", GRAD_CAM),
        Pair(fast, "compiled attention", "compiled forward", "compiled bare forward", 0.97),
        Pair(fast, "compiled attention", "forward", "bare forward", 1.2),
        Pair(fast, "compiled attention", "grad-cam", GRAD_CAM),
        Pair(fast_bf16, "compiled bf16", "compiled bf16 forward", "compiled bf16 bare forward"),
        Pair(fast_bf16, "compiled bf16", "forward", "bare forward"),
        Pair(fast_bf16, "compiled bf16", "grad-cam", GRAD_CAM),
        Pair("channel weights and boxes alone", "beyond", "forward", "bare forward"),
        Pair("bare forward", "forward", "loader", "loader alone"),
        Pair("noise: bare forward, again", "forward again", "forward", "bare forward"),
    )
    size, images = bench.options.size, len(bench.loader.source)
    facts: Row = {
        "encoder": bench.encoder,
        "size": size,
        "layout": bench.layout,
        "batch": bench.loader.global_batch_size,
        "threads": bench.threads,
        "rounds": bench.repeats,
        "found_fraction": found_fraction,
    }
    named = [pair._replace(name=f"{pair.name}, {bench.encoder} at {size}, {bench.layout}") for pair in pairs]
    for pair, row in zip(pairs, compare_pairs(seconds, named, images=images, facts=facts), strict=True):
        yield row | more.get((pair.way, pair.baseline), {})


def boxes_by_interpolation(features: Tensor, weights: Tensor, size: int) -> Boxes:
    """The kernel's peer: torch up to the full-size heatmaps, then NumPy image by image."""
    return boxes_of_heatmaps(upsampled(torch.einsum("bc,bcuv->buv", weights, features), size).numpy())


def time_kernel(batch: int, *, layouts: Sequence[str], size: int, repeats: int) -> Iterator[Row]:
    """attention_boxes alone, on ResNet-50's last map."""
    for layout in layouts:
        features, weights = peaked_features(batch, 2048)
        features = features.contiguous(memory_format=FORMATS[layout])
        ours = partial(attention_boxes, features, weights, delta=DELTA, size=size)
        peer = partial(boxes_by_interpolation, features, weights, size)
        agreed = agreement(ours()[0].numpy(), peer())
        seconds = time_pairs({"ours": ours, "peer": peer, "read": features.sum}, repeats=repeats)
        name, facts = f"attention_boxes, {layout}", {"batch": batch, "channels": 2048, "map": 7, "size": size}
        against = "torch interpolate + NumPy boxes per image"
        yield compare(name, seconds["ours"], seconds["peer"], against=against, target=50.0) | facts | agreed
        against = "features.sum(): the features read once"
        yield compare(name, seconds["ours"], seconds["read"], against=against) | facts


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the kernel, then of each network in each memory format."""
    repeats = 7 * options.repeats
    yield from time_kernel(options.kernel_batch, layouts=options.layout, size=max(options.size), repeats=repeats)
    for encoder, size, images in zip(options.encoder, options.size, options.images, strict=True):
        # Stored images are to the input as ImageNet's are to 224, so that decoding has the same weight.
        root = make_images(options.data, images, width=round(size * 500 / 224), height=round(size * 375 / 224))
        how = LoaderOptions(threads=options.threads, batch_size=options.batch_size)
        for layout in options.layout:
            channels_last = layout == "channels_last"
            bench = NetworkBench(
                encoder=encoder,
                layout=layout,
                model=untrained_model(encoder, size, channels_last=channels_last),
                loader=open_loader("folder", ImageFolder(root), WholePlan(size=size), how),
                options=AttentionPass(delta=DELTA, size=size, channels_last=channels_last, forward="eager"),
                threads=options.threads,
                repeats=options.repeats,
            )
            yield from time_pass(bench)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--encoder", nargs="+", default=["resnet50", "resnet18"], help="timm's ResNets")
    parser.add_argument("--size", nargs="+", type=int, default=[224, 64], help="input side, one per encoder")
    parser.add_argument("--images", nargs="+", type=int, default=[64, 512], help="images, one number per encoder")
    parser.add_argument("--layout", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the passes; the kernel has 7 times as many")
    parser.add_argument("--kernel-batch", type=int, default=256)
    add_threads(parser, default=2)
    add_data(parser)
    options = parser.parse_args()
    if not len(options.encoder) == len(options.size) == len(options.images):
        parser.error("--encoder, --size and --images must be equally many")
    if any(images > options.batch_size and images % options.batch_size for images in options.images):
        parser.error("--images must be whole batches: a smaller last batch is not compiled")
    use_cores(options.threads)
    record(options.out, rows(options))


if __name__ == "__main__":
    main()
