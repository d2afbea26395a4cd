"""The CPU kernels beside the obvious torch, NumPy, torchvision or Pillow way: ``--out FILE`` gets the figures.

Rows named "one core" give both sides one thread, the others give both all cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torchvision import transforms

from saga_fast.kernels import (
    PhotometricRecipe,
    attention_boxes,
    augment,
    bank_logits,
    crop_resize,
    sample_photometrics,
    sample_windows,
)
from saga_fast.profile.figures import Row, Ways, compare, line, time_pairs, write

NDArray = npt.NDArray[Any]
Boxes = npt.NDArray[np.float32]
Heatmaps = npt.NDArray[np.float32]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
MOCO_V2 = PhotometricRecipe(flip=0.5, **JITTER, jitter=0.8, grayscale=0.2, blur=0.5)
SCALE, RATIO = (0.2, 1.0), (3.0 / 4.0, 4.0 / 3.0)  # MoCo's RandomResizedCrop
DELTA = 0.7
HEIGHT, WIDTH, VIEW = 375, 500, 224  # the usual ImageNet photograph, and its view


@contextmanager
def one_core() -> Iterator[None]:
    """Both thread pools at one thread."""
    threads = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(threads[0])
        torch.set_num_threads(threads[1])


def pictures(count: int, height: int, width: int) -> NDArray:
    """(count, height, width, 3) uint8: coloured clouds with some noise, all levels and hues."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 12, 16, 3), np.uint8)
    clouds = np.stack(
        [np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse]
    )
    noise = rng.integers(-20, 21, clouds.shape, np.int16)
    levels: NDArray = np.clip(clouds + noise, 0, 255)
    return levels.astype(np.uint8)


def peaks(batch: int, generator: torch.Generator) -> torch.Tensor:
    """(batch, 1, 7, 7): one soft peak per image, because a flat map has no pixel that every threshold leaves out."""
    y, x = torch.rand(2, batch, 1, 1, 1, generator=generator) * 7
    grid = torch.arange(7) + 0.5
    return torch.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / 8)


def scaled_heatmaps(coarse: torch.Tensor) -> torch.Tensor:
    """(B, u, v) channel sums to (B, VIEW, VIEW) in [0, 1]."""
    maps = coarse.relu().flatten(1)
    maps = maps - maps.min(1, keepdim=True)[0]
    maps = (maps / maps.max(1, keepdim=True)[0]).view(coarse.shape)
    return F.interpolate(maps[:, None], size=(VIEW, VIEW), mode="bicubic")[:, 0]


def boxes_as_contrastive_crop(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """ContrastiveCrop's update_box, with the channel sum weighted (Eq. 3) and the interpolation bicubic."""
    boxes = []
    for heatmap in scaled_heatmaps(torch.einsum("bc,bcuv->buv", weights, features)):
        rows = torch.nonzero((heatmap.max(1)[0] > DELTA).int()).view(-1)[[0, -1]] / VIEW
        columns = torch.nonzero((heatmap.max(0)[0] > DELTA).int()).view(-1)[[0, -1]] / VIEW
        boxes.append(torch.tensor([columns[0], rows[0], columns[1], rows[1]]))
    return torch.stack(boxes)


def boxes_as_grad_cam(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The channel sum as pytorch-grad-cam writes it, and each mask's pixels listed by nonzero."""
    boxes = []
    for heatmap in scaled_heatmaps((weights[:, :, None, None] * features).sum(1)):
        pixels = torch.nonzero(heatmap > DELTA)
        boxes.append(torch.cat([pixels.min(0)[0], pixels.max(0)[0]]) / VIEW)
    return torch.stack(boxes)


def boxes_of_heatmaps(heatmaps: Heatmaps) -> Boxes:
    """The rectangle around the pixels above DELTA, image by image: heatmaps (B, S, S) -> (B, 4) normalised."""
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(heatmaps), 1))
    for box, heatmap in zip(boxes, heatmaps, strict=True):
        mask = heatmap > DELTA
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        if len(rows):
            near, far = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
            box[:] = np.concatenate([near, far - near]) / len(heatmap)
    return boxes


def bench_attention_boxes(small: bool) -> Iterator[Row]:
    """ResNet-50's last map, in both layouts. The features must be read once: a plain sum over them is the floor."""
    batch, channels = (4, 64) if small else (256, 2048)
    facts: dict[str, Any] = {"batch": batch, "channels": channels, "map": 7, "size": VIEW}
    for layout, strides in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        generator = torch.Generator().manual_seed(0)
        features = torch.rand(batch, channels, 7, 7, generator=generator)
        features = (features * peaks(batch, generator)).contiguous(memory_format=strides)
        weights = torch.rand(batch, channels, generator=generator)
        ways: Ways = {
            "ours": partial(attention_boxes, features, weights, size=VIEW),
            "channel sum": partial(attention_boxes, features, weights, size=1),
            "plain sum": features.sum,
            "ContrastiveCrop's interpolate and loop": partial(boxes_as_contrastive_crop, features, weights),
            "product, sum, interpolate, loop of nonzero": partial(boxes_as_grad_cam, features, weights),
        }
        seconds = time_pairs(ways, repeats=2 if small else 20)
        name = f"attention_boxes, {layout}"
        for against in list(ways)[3:]:
            yield compare(name, seconds["ours"], seconds[against], against=against, target=50.0, **facts)
        yield compare(name, seconds["ours"], seconds["plain sum"], against="features.sum()", **facts)
        name = f"attention_boxes, channel sum (size 1), {layout}"
        facts_of_sum = facts | {"size": 1, "target": round(1 / 1.5, 3)}
        yield compare(name, seconds["channel sum"], seconds["plain sum"], against="features.sum()", **facts_of_sum)


def windows_by_torchvision(sizes: NDArray, views: int) -> None:
    for height, width in sizes:
        image = torch.empty(3, height, width, device="meta")
        for _ in range(views):
            transforms.RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))


def bench_sample_windows(small: bool) -> Iterator[Row]:
    batch = 4 if small else 256
    boxes, sizes = np.tile(np.array([0, 0, 1, 1], np.float32), (batch, 1)), np.tile([HEIGHT, WIDTH], (batch, 1))
    keys: dict[str, Any] = {
        "seed": 0,
        "epoch": 0,
        "indices": np.arange(batch),
        "num_views": 2,
        "scale": SCALE,
        "ratio": RATIO,
    }
    ways: Ways = {
        "ours": partial(sample_windows, boxes, sizes, **keys),
        "other": partial(windows_by_torchvision, sizes, 2),
    }
    seconds = time_pairs(ways, repeats=2 if small else 20)
    against = "torchvision RandomResizedCrop.get_params"
    yield compare("sample_windows", *seconds.values(), against=against, images=batch, views=2)


def photometrics_by_torchvision(views: int) -> None:
    around = (0.6, 1.4)
    for _ in range(views):
        transforms.ColorJitter.get_params(around, around, around, (-0.1, 0.1))
        transforms.GaussianBlur.get_params(0.1, 2.0)
        for _ in ("flip", "jitter", "grayscale", "blur"):
            torch.rand(1).item()


def bench_sample_photometrics(small: bool) -> Iterator[Row]:
    batch = 4 if small else 256
    ways: Ways = {
        "ours": partial(sample_photometrics, MOCO_V2, 0, 0, np.arange(batch), 2),
        "other": partial(photometrics_by_torchvision, 2 * batch),
    }
    seconds = time_pairs(ways, repeats=2 if small else 20)
    against = "torchvision get_params and torch.rand"
    yield compare("sample_photometrics", *seconds.values(), against=against, images=batch, views=2)


def resize_by_pillow(images: list[Image.Image], windows: NDArray) -> None:
    for image, views in zip(images, windows, strict=True):
        for top, left, height, width in views.tolist():
            image.resize((VIEW, VIEW), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))


def bench_crop_resize(small: bool) -> Iterator[Row]:
    """Two views of each image: plain crops, mostly reduced, and crops of boxes of half the side, mostly enlarged."""
    batch = 2 if small else 64
    images = pictures(batch, HEIGHT, WIDTH)
    by_pillow, sizes = [Image.fromarray(image) for image in images], np.tile([HEIGHT, WIDTH], (batch, 1))
    for kind, box in (("plain crops", [0.0, 0.0, 1.0, 1.0]), ("crops of half-side boxes", [0.25, 0.25, 0.5, 0.5])):
        boxes = np.tile(np.array(box, np.float32), (batch, 1))
        windows = sample_windows(
            boxes, sizes, seed=0, epoch=0, indices=np.arange(batch), num_views=2, scale=SCALE, ratio=RATIO
        )
        ways: Ways = {
            "ours": partial(crop_resize, images, windows, VIEW),
            "other": partial(resize_by_pillow, by_pillow, windows),
        }
        with one_core():
            seconds = time_pairs(ways, repeats=2 if small else 20)
        name = f"crop_resize, one core, {kind}"
        yield compare(name, *seconds.values(), against="Pillow resize(box=...)", images=batch, views=2, target=1.0)


class PillowBlur:
    """The blur of MoCo v2's own code: a Pillow filter, which approximates the Gaussian by three box blurs."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(np.random.default_rng().uniform(0.1, 2.0)))


def augment_by_torchvision(views: list[Image.Image], blur: Callable[[Any], Any]) -> torch.Tensor:
    recipe = transforms.Compose(
        [
            transforms.RandomApply([transforms.ColorJitter(**JITTER)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return torch.stack([recipe(view) for view in views])


def augment_by_us(views: torch.Tensor) -> torch.Tensor:
    photometrics = sample_photometrics(MOCO_V2, 0, 0, torch.arange(len(views)), views.shape[1])
    return augment(views, photometrics, MEAN, STD)


def bench_augment(small: bool) -> Iterator[Row]:
    """MoCo v2's photometric recipe, parameters drawn and result normalised, on views that are already cropped."""
    batch = 2 if small else 64
    views = pictures(2 * batch, VIEW, VIEW)
    by_pillow = [Image.fromarray(view) for view in views]
    gaussian = transforms.GaussianBlur(23, (0.1, 2.0))
    ways: Ways = {
        "ours": partial(augment_by_us, torch.from_numpy(views).view(batch, 2, VIEW, VIEW, 3)),
        "torchvision on PIL, blur by Pillow as MoCo": partial(augment_by_torchvision, by_pillow, PillowBlur()),
        "torchvision on PIL, GaussianBlur(23)": partial(augment_by_torchvision, by_pillow, gaussian),
    }
    with one_core():
        seconds = time_pairs(ways, repeats=2 if small else 10)
    ours = seconds.pop("ours")
    for against, other in seconds.items():
        name = "augment, one core, MoCo v2"
        yield compare(name, ours, other, against=against, images=batch, views=2, target=8.0)


def logits_by_bmm(features: torch.Tensor, bank: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    rows = bank.index_select(0, idx.flatten()).view(*idx.shape, -1)
    return torch.bmm(rows, features[:, :, None])[:, :, 0]


def bank_arguments(small: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """InsDis on ImageNet: a row for each of 1,281,167 images, 65,536 negatives per sample."""
    batch, count, num_rows = (16, 16385, 1000) if small else (32, 65537, 1281167)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 128, generator=generator, requires_grad=True)
    bank = torch.randn(num_rows, 128, generator=generator)
    return features, bank, torch.randint(num_rows, (batch, count), generator=generator)


def bank_peak(by_bmm: bool, small: bool) -> tuple[int, int, int]:
    """Bytes that resident memory grows by at the peak of forward and backward; those of inputs; those of outputs."""
    op = logits_by_bmm if by_bmm else bank_logits
    features, bank, idx = bank_arguments(small)
    grad = torch.ones(idx.shape)
    torch.autograd.grad(op(features[:1], bank, idx[:1, :5]), features, grad[:1, :5])  # compiles, imports
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far

    def status(field: str) -> int:
        return next(int(x.split()[1]) * 1024 for x in Path("/proc/self/status").open() if x.startswith(field))

    before = status("VmRSS")
    logits = op(features, bank, idx)
    torch.autograd.grad(logits, features, grad)
    growth = status("VmHWM") - before
    return growth, sum(x.nbytes for x in (features, bank, idx, grad)), logits.nbytes + features.nbytes


def bench_bank_logits(small: bool) -> Iterator[Row]:
    features, bank, idx = bank_arguments(small)
    facts: dict[str, Any] = {"batch": len(idx), "logits": idx.shape[1], "features": 128, "bank_rows": len(bank)}
    grad = torch.ones(idx.shape)

    def forward_and_backward(op: Callable[..., torch.Tensor]) -> None:
        torch.autograd.grad(op(features, bank, idx), features, grad)

    def forward(op: Callable[..., torch.Tensor]) -> None:
        with torch.no_grad():
            op(features, bank, idx)

    for name, run in (("forward", forward), ("forward and backward", forward_and_backward)):
        ways: Ways = {"ours": partial(run, bank_logits), "other": partial(run, logits_by_bmm)}
        ours, other = time_pairs(ways, repeats=2 if small else 10).values()
        yield compare(f"bank_logits, {name}", ours, other, against="index_select + bmm", target=1.0, **facts)
    peaks = []
    for by_bmm in (False, True):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            peaks.append(process.submit(bank_peak, by_bmm, small).result())
    (growth, inputs, outputs), (limit, _, _) = peaks
    yield {
        "name": "bank_logits, peak memory beyond the inputs",
        "bytes": growth,
        "limit": limit,
        "against": "index_select + bmm",
        "ratio": limit / growth,
        "peak_over_inputs_and_outputs": (inputs + growth) / (inputs + outputs),  # the limit is 1.2
        **facts,
    }


BENCHMARKS = {
    "attention_boxes": bench_attention_boxes,
    "sample_windows": bench_sample_windows,
    "sample_photometrics": bench_sample_photometrics,
    "crop_resize": bench_crop_resize,
    "augment": bench_augment,
    "bank_logits": bench_bank_logits,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), help="these ops only")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that the script runs, measures nothing")
    arguments = parser.parse_args()
    rows = [row for name in arguments.only for row in BENCHMARKS[name](arguments.small)]
    write(arguments.out, rows)
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
