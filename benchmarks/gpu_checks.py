"""Every kernel against the oracle: fresh random inputs, odd and usual shapes, poisoned outputs.

The outputs are poisoned by torch's deterministic mode, in which ``torch.empty`` holds NaN and the largest integers.
Tolerances are those of tests/kernels, where each is justified.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_timing import Bench
from benchmarks.kernel_peers import two_windows
from saga_fast.kernels import (
    PHOTOMETRIC_FIELDS,
    PhotometricRecipe,
    attention_boxes,
    augment,
    bank_logits,
    crop_resize,
    planes_to_rgb,
    sample_photometrics,
)
from saga_fast.kernels.planes_to_rgb import num_bytes
from saga_fast.profile.figures import Row
from saga_fast.profile.kernels import MEAN, MOCO_V2, STD

EVERYTHING = PhotometricRecipe(
    flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, grayscale=0.3, blur=0.5, solarize=0.5
)
NEAR = 1e-5  # float32 may decide a heatmap's pixel otherwise than float64 within this of delta
ROUNDING, BLURRED = 1e-5, 1.0 / 255.0  # of a value in [0, 1]: see tests/kernels/test_augment_triton.py
PRECISION = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


@contextmanager
def poisoned(bench: Bench) -> Iterator[None]:
    """``torch.empty`` returns NaN and the largest integers."""
    bench.check_time()
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.isnan(torch.empty(3, device=bench.device)).all()), "torch.empty is not poisoned"
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def verdict(bench: Bench, name: str, deviation: float, limit: float, meaning: str, facts: Row) -> Row:
    """A row of a deviation from the oracle; above the limit, or NaN, it is an error. The ratio stops at 1000.

    Args:
        name: of the kernel.
        deviation, limit: in units of ``meaning``.
        facts: more columns, such as the shape; ``dtype`` is put into the row's name.
    """
    against = f"allowed {meaning}"
    kind = f", {str(facts['dtype']).removeprefix('torch.')}" if "dtype" in facts else ""
    row: Row = {"name": f"check {name}{kind}", "against": against, "impl": bench.impl, "seed": bench.seed} | facts
    if not deviation <= limit:
        return row | {"error": f"differs from the oracle by {deviation:.3g}, {against} is {limit:.3g}"}
    return row | {"deviation": deviation, "limit": limit, "ratio": limit / max(deviation, 1e-3 * limit)}


def check_attention_boxes(bench: Bench) -> Iterator[Row]:
    """Boxes that delta's rounding does not decide must be the oracle's to the last bit."""
    shapes = [(64, 2048, 7, 7, 224), (3, 601, 9, 11, 300), (2, 37, 34, 31, 40), (5, 3, 1, 3, 37)]
    for batch, channels, u, v, size in [(4, 37, 7, 7, 224), (3, 5, 9, 11, 37)] if bench.small else shapes:
        weights = torch.randn(batch, channels, generator=bench.generator)
        values = torch.randn(batch, channels, u, v, generator=bench.generator)
        for dtype, layout in (
            (torch.float32, torch.contiguous_format),
            (torch.bfloat16, torch.channels_last),
            (torch.float16, torch.contiguous_format),
        ):
            features = bench.put(values.to(dtype)).contiguous(memory_format=layout)
            on_device = bench.put(weights)
            with poisoned(bench):
                boxes, found = attention_boxes(features, on_device, size=size, impl=bench.impl)
            outer, inner = (
                attention_boxes(features, on_device, delta=0.7 + shift, size=size, impl="reference")
                for shift in (-NEAR, NEAR)
            )
            decided = (outer[0] == inner[0]).all(1) & (outer[1] == inner[1])
            apart = ((boxes - outer[0]).abs().amax(1) * size + (found != outer[1]))[decided]
            facts: Row = {"shape": [batch, channels, u, v], "dtype": str(dtype), "layout": str(layout)}
            facts["undecided"] = int((~decided).sum())
            worst = float(apart.max()) if len(apart) else float("nan")
            yield verdict(bench, "attention_boxes", worst, 0.5, "pixels", facts)


def stored(bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """A padded batch of noise, windows, photometrics for two views of each image, flips, and the views' side."""
    batch, height, width, side = (2, 40, 53, 29) if bench.small else (6, 375, 500, 97)
    images = bench.put(bench.rng.integers(0, 256, (batch, height, width, 3), np.uint8))
    sizes = bench.rng.integers((height // 2, width // 2), (height + 1, width + 1), (batch, 2))
    windows = two_windows(sizes, seed=bench.seed, scale=(0.05, 1.0))
    photometrics = sample_photometrics(EVERYTHING, bench.seed, 0, np.arange(batch), 2)
    photometrics[: batch // 2] = sample_photometrics(MOCO_V2, bench.seed, 1, np.arange(batch // 2), 2)
    flip = bench.rng.integers(0, 2, (batch, 2)).astype(np.bool_)
    return images, bench.put(windows), bench.put(photometrics), bench.put(flip), side


def check_crop_resize(bench: Bench) -> Iterator[Row]:
    """Within a level, which is where float32 rounds a half the other way: in 1 % of the values at most."""
    images, windows, _, flip, side = stored(bench)
    for kind, flips in (("", None), (", flipped", flip)):
        with poisoned(bench):
            views = crop_resize(images, windows, side, flip=flips, impl=bench.impl)
        oracle = crop_resize(images, windows, side, flip=flips, impl="reference")
        apart = (views.int() - oracle.int()).abs()
        worst, percent = float(apart.max()), 100.0 * float((apart > 0).float().mean())
        meaning = "levels, and percent of the values that differ"
        facts: Row = {"side": side, "percent": percent}
        yield verdict(bench, f"crop_resize{kind}", max(worst, percent), 1.0, meaning, facts)


def augment_deviation(result: Tensor, oracle: Tensor, photometrics: Tensor | None) -> float:
    """The largest difference over the allowed one, except next to the threshold where solarize jumps."""
    shape = (*oracle.shape[:2], 1, 1, 1)
    allowed, apart = (torch.full(shape, x, device=oracle.device) for x in (ROUNDING, 2.0))
    if photometrics is not None:
        column = {name: photometrics[..., i].view(shape) for i, name in enumerate(PHOTOMETRIC_FIELDS)}
        allowed[column["blur_sigma"] > 0.0] = BLURRED
        apart = column["solarize"]
    mean, std = (torch.tensor(x, device=oracle.device).view(3, 1, 1) for x in (MEAN, STD))
    value = oracle * std + mean
    jumps = ((value - apart).abs() <= allowed) | ((value - 1.0 + apart).abs() <= allowed)
    allowed = (allowed + ROUNDING) / std + PRECISION[result.dtype] * oracle.abs()
    excess = (result.float() - oracle).abs() / allowed
    if bool(torch.isnan(excess).any()):
        return float("nan")  # also where solarize may jump
    return float(excess[~jumps].max())


def check_augment(bench: Bench) -> Iterator[Row]:
    """With and without photometrics, in three formats."""
    images, windows, photometrics, _, side = stored(bench)
    views = crop_resize(images, windows, side, impl=bench.impl)
    oracles = {True: augment(views, photometrics, MEAN, STD, impl="reference")}
    oracles[False] = augment(views, None, MEAN, STD, impl="reference")
    for last, dtype in ((False, torch.float32), (True, torch.bfloat16), (True, torch.float16)):
        for augmented, oracle in oracles.items():
            parameters = photometrics if augmented else None
            with poisoned(bench):
                result = augment(views, parameters, MEAN, STD, channels_last=last, dtype=dtype, impl=bench.impl)
            facts: Row = {"dtype": str(dtype), "channels_last": last, "photometrics": augmented, "side": side}
            deviation = augment_deviation(result, oracle, parameters)
            yield verdict(bench, "augment", deviation, 1.0, "multiples of the tolerance", facts)


def check_bank_logits(bench: Bench) -> Iterator[Row]:
    """Forward and backward by relative error. The bank also in bfloat16 where Triton takes it."""
    shapes = [(7, 1037, 100, 5000)] if bench.small else [(32, 4097, 128, 100_000), (7, 1037, 100, 5000)]
    for batch, count, width, num_rows in shapes:
        idx = bench.put(torch.randint(num_rows, (batch, count), generator=bench.generator))
        features = bench.put(torch.randn(batch, width, generator=bench.generator)).requires_grad_()
        grad = bench.put(torch.randn(batch, count, generator=bench.generator))
        values = bench.put(torch.randn(num_rows, width, generator=bench.generator))
        for dtype in (torch.float32, torch.bfloat16) if bench.cuda else (torch.float32,):
            bank = values.to(dtype)
            with poisoned(bench):
                ours = bank_logits(features, bank, idx, impl=bench.impl)
                (ours_back,) = torch.autograd.grad(ours, features, grad)
            oracle = bank_logits(features, bank, idx, impl="reference")
            (oracle_back,) = torch.autograd.grad(oracle, features, grad)
            facts: Row = {"shape": [batch, count, width, num_rows], "dtype": str(dtype)}
            for direction, x, reference in (("forward", ours, oracle), ("backward", ours_back, oracle_back)):
                error = float((x.detach().double() - reference.detach().double()).norm() / reference.detach().norm())
                yield verdict(bench, f"bank_logits, {direction}", error, 1e-5, "relative error", facts)


def check_planes_to_rgb(bench: Bench) -> Iterator[Row]:
    """To the bit, on images of any sizes."""
    shapes = [(1, 1), (5, 2), (17, 33)] if bench.small else [(1, 1), (5, 2), (17, 33), (375, 500), (500, 333)]
    sizes = np.array(shapes)
    planes = bench.put(bench.rng.integers(0, 256, int(num_bytes(*sizes.T).sum()), np.uint8))
    with poisoned(bench):
        pixels = planes_to_rgb(planes, sizes, impl=bench.impl)
    apart = (pixels.int() - planes_to_rgb(planes, sizes, impl="reference").int()).abs()
    yield verdict(bench, "planes_to_rgb", float(apart.max()), 0.5, "levels", {"images": len(sizes)})


def checks(bench: Bench) -> Iterator[Row]:
    """The checks of all kernels."""
    yield from check_attention_boxes(bench)
    yield from check_crop_resize(bench)
    yield from check_augment(bench)
    yield from check_bank_logits(bench)
    yield from check_planes_to_rgb(bench)
