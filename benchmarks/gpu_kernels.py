"""Each kernel against the copy bandwidth of the same run, and against the usual torch or torchvision code.

Bytes are the fewest that the op must move: each input once, each output once. Of stored images that is the windows'
area, though no more than the image; of a memory bank the drawn rows, as often as they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from benchmarks.gpu_inputs import Photographs, draws, finished_views, located, photographs
from benchmarks.gpu_timing import Bench, Way, against_bytes, kernel_seconds, rotation, time_ways
from benchmarks.kernel_peers import DELTA, JITTER, VIEW, boxes_as_contrastive_crop, logits_by_bmm, peaks, upsampled
from saga_fast.kernels import attention_boxes, augment, bank_logits, crop_resize, planes_to_rgb
from saga_fast.kernels.planes_to_rgb import num_bytes
from saga_fast.profile.figures import Row, Seconds, compare
from saga_fast.profile.kernels import MEAN, STD

BUDGET = 0.001
"""Seconds for two finished views of 256 images on a GPU: the target."""


def boxes_by_torch(features: Tensor, weights: Tensor) -> Tensor:
    """Fast eager torch: full-size heatmaps of the whole batch, nothing on the host; (B, 4) [x0, y0, x1, y1]."""
    masks = upsampled(torch.einsum("bc,bcuv->buv", weights, features.float()), VIEW) > DELTA
    edges = []
    for hit in (masks.any(1), masks.any(2)):  # columns, rows
        size = hit.shape[1]
        edges.append((hit.int().argmax(1) / size, (size - hit.flip(1).int().argmax(1)) / size))
    return torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], 1)


def time_copy(bench: Bench) -> Iterator[Row]:
    """The limit of all other rows."""
    rate = bench.copy_bandwidth()
    yield {"name": "copy bandwidth", "bytes_per_second": rate, "limit": rate, "against": "itself", "ratio": 1.0}


def time_attention_boxes(bench: Bench) -> Iterator[Row]:
    """ResNet-50's last map in bfloat16, in both layouts: the usual batch, and one four times as large."""
    channels = 64 if bench.small else 2048
    for batch in (4,) if bench.small else (256, 1024):
        size = batch * channels * (49 * 2 + 4) + batch * 17
        inputs = rotation(bench, size)
        heights = [bench.put(peaks(batch, bench.generator)) for _ in range(inputs)]
        weights = [bench.put(torch.rand(batch, channels, generator=bench.generator)) for _ in range(inputs)]
        for layout, strides in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
            maps = [
                (torch.rand(batch, channels, 7, 7, device=bench.device) * height)
                .to(torch.bfloat16)
                .contiguous(memory_format=strides)
                for height in heights
            ]
            name, facts = f"attention_boxes, batch {batch}, bf16, {layout}", {"batch": batch, "channels": channels}
            for row in _time_boxes(bench, name, maps, weights, size):
                yield row | facts | {"impl": bench.impl}


def _time_boxes(bench: Bench, name: str, maps: list[Tensor], weights: list[Tensor], size: int) -> Iterator[Row]:
    """The rows of one batch and layout; ``size`` is the bytes of an input and its output."""
    # A graph of 96 kernels runs for 2 ms, next to which its own launch, 10 microseconds, is nothing.
    rounds = max(1, 96 // len(maps)) if bench.cuda else 1
    ours = [partial(attention_boxes, x, w, impl=bench.impl) for x, w in zip(maps, weights, strict=True)]
    eager = [partial(boxes_by_torch, x, w) for x, w in zip(maps, weights, strict=True)]
    ways = {
        "ours": Way(ours, rounds, True),
        "sum": Way([x.sum for x in maps], rounds, True),
        "torch": Way(eager, captured=True),
        "launched": Way(ours, rounds),
    }
    seconds = time_ways(bench, ways, repeats=50)
    loop = Way([partial(boxes_as_contrastive_crop, maps[0].float(), weights[0])])
    slow = time_ways(bench, {"loop": loop}, repeats=5)["loop"]
    took, facts = seconds["ours"], {"clock": bench.clock(ways["ours"])}
    yield against_bytes(bench, name, took, size) | facts | {"target": 0.8}
    yield compare(name, took, seconds["sum"], against="features.sum()") | facts
    yield compare(name, took, seconds["torch"], against="eager torch, batched") | facts
    median = np.full_like(took, np.median(slow))
    yield compare(name, took, median, against="ContrastiveCrop's interpolate and loop") | facts
    row = compare(f"{name}, launched by the host", seconds["launched"], took, against="the graph")
    yield row | {"clock": bench.clock(ways["launched"])}


def stored(bench: Bench) -> tuple[Photographs, list[tuple[Tensor, Tensor, Tensor]], int]:
    """Photographs, batches of (images, windows, photometrics of two views each) on the device, and bytes to read."""
    stock = photographs(bench)
    batches, size, image = [], 0, int(stock.sizes[0].prod())
    for epoch in range(2):
        windows, photometrics = draws(bench, stock.sizes, epoch)
        batches.append((stock.images.roll(epoch, 1).contiguous(), bench.put(windows), bench.put(photometrics)))
        areas = windows[..., 2].long() * windows[..., 3]
        size = int(areas.sum(1).clamp(max=image).sum()) * 3
    return stock, batches, size


def crops_by_torchvision(images: Tensor, windows: list[list[list[int]]], side: int) -> None:
    """Images (B, 3, H, W); windows on the host, where torchvision needs them."""
    for image, views in zip(images, windows, strict=True):
        for window in views:
            tv.resized_crop(image, *window, [side, side], antialias=True)


def time_crop_resize(bench: Bench) -> Iterator[Row]:
    """Two MoCo v2 views of each image."""
    stock, batches, read = stored(bench)
    side, count = stock.side, 2 * len(stock.sizes)
    ways = {
        "ours": Way(
            [partial(crop_resize, located(bench, i), w, side, impl=bench.impl) for i, w, _ in batches], 4, True
        ),
        "torchvision": Way(
            [partial(crops_by_torchvision, i.permute(0, 3, 1, 2), w.tolist(), side) for i, w, _ in batches[:1]]
        ),
    }
    ours, peer = time_ways(bench, ways, repeats=10).values()
    facts: Row = {"views": count, "impl": bench.impl, "clock": bench.clock(ways["ours"])}
    yield against_bytes(bench, "crop_resize", ours, read + count * side * side * 3) | facts
    yield compare("crop_resize", ours, peer, against="torchvision v2 on the device, view by view") | facts


def time_planes_to_rgb(bench: Bench) -> Iterator[Row]:
    """A batch of ImageNet with a longer side of 256 pixels, as the ffcv engine converts it before the crops."""
    batch, height, width = (2, 40, 53) if bench.small else (256, 192, 256)
    sizes = np.tile([height, width], (batch, 1))
    stored = int(num_bytes(height, width)) * batch
    planes = [bench.put(torch.randint(256, (stored,), dtype=torch.uint8)) for _ in range(2)]
    way = Way([partial(planes_to_rgb, each, sizes, impl=bench.impl) for each in planes], 4)
    moved, facts = stored + 3 * batch * height * width, {"images": batch, "impl": bench.impl}
    launched = time_ways(bench, {"ours": way}, repeats=20)["ours"]
    ours = kernel_seconds(bench, way) if bench.cuda else launched
    row = against_bytes(bench, "planes_to_rgb", ours, moved) | facts
    yield row | {"clock": "profiler, kernels alone" if bench.cuda else bench.clock(way)}
    yield compare("planes_to_rgb, launched by the host", launched, ours, against="the kernel") | facts


def recipe_of_kornia(device: torch.device) -> Callable[[Tensor], Tensor]:
    """MoCo v2's recipe by kornia, which draws for each view: (N, 3, S, S) float32 in [0, 1] -> normalised."""
    import kornia.augmentation as kornia

    recipe: Callable[[Tensor], Tensor] = kornia.AugmentationSequential(
        kornia.ColorJitter(**JITTER, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
        kornia.RandomHorizontalFlip(),
        kornia.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    ).to(device)
    return recipe


def time_augment(bench: Bench) -> Iterator[Row]:
    """MoCo v2's recipe on 2 x 256 views, alone and after crop_resize."""
    stock, batches, read = stored(bench)
    side, count = stock.side, 2 * len(stock.sizes)
    views = [crop_resize(images, windows, side, impl=bench.impl) for images, windows, _ in batches]
    planar = views[0].flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    recipe = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(**JITTER)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def one_by_one() -> None:
        for view in planar:
            recipe(view)

    def augmented(views: Tensor, photometrics: Tensor) -> Tensor:
        result: Tensor = augment(
            views, photometrics, MEAN, STD, channels_last=True, dtype=torch.bfloat16, impl=bench.impl
        )
        return result

    ways = {
        "augment": Way([partial(augmented, v, p) for v, (_, _, p) in zip(views, batches, strict=True)], 4, True),
        "finished": Way(
            [partial(finished_views, bench, located(bench, i), w, p, side) for i, w, p in batches], 4, True
        ),
        "batched": Way([partial(recipe, planar)]),
    }
    if find_spec("kornia"):
        floats, kornia = planar.float() / 255.0, recipe_of_kornia(bench.device)
        ways["kornia"] = Way([partial(kornia, floats)])
    seconds = time_ways(bench, ways, repeats=20)
    seconds["one by one"] = time_ways(bench, {"slow": Way([one_by_one])}, repeats=3)["slow"]
    facts: Row = {"views": count, "side": side, "impl": bench.impl, "clock": bench.clock(ways["augment"])}
    for row in _rows_of_augment(bench, seconds, read, count * side * side * 3):
        yield row | facts


def _rows_of_augment(bench: Bench, seconds: dict[str, Seconds], read: int, values: int) -> Iterator[Row]:
    """The rows; ``read`` is the bytes of the windows, ``values`` the number of values of the views."""
    written = 2 * values
    finished = "crop_resize, then augment"
    sizes = {"augment": ("augment", values + written), "finished": (finished, read + written)}
    for way, (name, size) in sizes.items():
        ours = seconds[way]
        yield against_bytes(bench, name, ours, size)
        if bench.cuda:
            yield compare(name, ours, np.full_like(ours, BUDGET), against="the target of 1 ms", target=1.0)
    ours = seconds["augment"]
    slow = np.full_like(ours, np.median(seconds["one by one"]))
    peers = {
        "torchvision v2 on the device, view by view": slow,
        "torchvision v2 on the device, one draw for the whole batch": seconds["batched"],
    }
    if "kornia" in seconds:
        peers["kornia on the device, from float32 views"] = seconds["kornia"]
    for against, peer in peers.items():
        yield compare("augment", ours, peer, against=against)


def peak_bytes(run: Callable[[], object]) -> int:
    """The peak of the bytes that a call allocates."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def time_bank_logits(bench: Bench) -> Iterator[Row]:
    """InsDis on ImageNet, forward and backward. Peak memory on a GPU only: bench_kernels.py measures the CPU's."""
    batch, count, num_rows = (4, 1025, 1000) if bench.small else (32, 65537, 1281167)
    features = bench.put(torch.randn(batch, 128, generator=bench.generator)).requires_grad_()
    bank = torch.randn(num_rows, 128, device=bench.device)
    draws = [bench.put(torch.randint(num_rows, (batch, count), generator=bench.generator)) for _ in range(2)]
    grad = torch.randn(batch, count, device=bench.device)
    ours_op = partial(bank_logits, impl=bench.impl)

    def forward(op: Callable[..., Tensor], idx: Tensor) -> None:
        with torch.no_grad():
            op(features, bank, idx)

    def both(op: Callable[..., Tensor], idx: Tensor) -> None:
        torch.autograd.grad(op(features, bank, idx), features, grad)

    facts: Row = {"batch": batch, "logits": count, "bank_rows": num_rows, "impl": bench.impl}
    moved, peer = batch * count * (128 * 4 + 8 + 4), "index_select + bmm"  # a row, its index, its logit or gradient
    for direction, run, size in (("forward", forward, moved), ("forward and backward", both, 2 * moved)):
        ways = {
            "ours": Way([partial(run, ours_op, idx) for idx in draws], 4),
            "bmm": Way([partial(run, logits_by_bmm, idx) for idx in draws], 2),
        }
        ours, bmm = time_ways(bench, ways, repeats=20).values()
        name, timed = f"bank_logits, {direction}", {"clock": bench.clock(ways["ours"])}
        yield against_bytes(bench, name, ours, size) | facts | timed
        yield compare(name, ours, bmm, against=peer, target=1.0) | facts | timed
    if bench.cuda:
        growth, limit = (peak_bytes(partial(both, op, draws[0])) for op in (ours_op, logits_by_bmm))
        inputs = sum(x.nbytes for x in (features, bank, draws[0], grad))
        outputs = grad.nbytes + features.nbytes
        row: Row = {"name": "bank_logits, peak memory beyond the inputs", "bytes": growth, "limit": limit}
        row |= {"against": peer, "ratio": limit / growth}
        yield row | {"peak_over_inputs_and_outputs": (inputs + growth) / (inputs + outputs)} | facts
