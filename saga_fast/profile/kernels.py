"""``profile kernels``: each kernel on this machine, compared with a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from saga_fast.kernels import (
    PhotometricRecipe,
    attention_boxes,
    augment,
    bank_logits,
    crop_resize,
    sample_photometrics,
    sample_windows,
)
from saga_fast.profile.figures import Row, compare, time_pairs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOCO_V2 = PhotometricRecipe(
    flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5
)
HEIGHT, WIDTH = 375, 500
"""Size of a stored image: the most frequent one of ImageNet."""


def profile_kernels(device: torch.device, *, batch_size: int, size: int, repeats: int) -> Iterator[Row]:
    """One row per kernel; the limit is a copy of as many bytes as the kernel must read and write.

    Args:
        device: device of the arrays; the two sampling kernels always run on the CPU.
        batch_size: images per call.
        size: side of the views, pixels.
        repeats: calls of each kernel.
    """
    for name, (run, moved_bytes) in _kernel_calls(device, batch_size, size).items():
        source = torch.ones(max(moved_bytes // 2, 1), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)

        def copy(source: torch.Tensor = source, target: torch.Tensor = target) -> None:
            target.copy_(source)

        ways = {"kernel": _synchronised(run, device), "copy": _synchronised(copy, device)}
        seconds = time_pairs(ways, repeats=repeats)
        yield compare(
            name, seconds["kernel"], seconds["copy"], against="copy of as many bytes", moved_bytes=moved_bytes
        )


def _synchronised(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The same call, waiting for the GPU at its end."""

    def synchronised() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return synchronised


def _kernel_calls(device: torch.device, batch: int, size: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """(call with a training step's arguments, bytes to read and write) of each kernel."""
    generator = torch.Generator().manual_seed(0)
    indices, sizes = np.arange(batch), np.tile([HEIGHT, WIDTH], (batch, 1))
    boxes = np.tile(np.array([0.25, 0.25, 0.5, 0.5], np.float32), (batch, 1))
    key: dict[str, Any] = {"seed": 0, "epoch": 0, "indices": indices, "num_views": 2}
    windows = sample_windows(boxes, sizes, **key)
    photometrics = sample_photometrics(MOCO_V2, 0, 0, torch.from_numpy(indices), 2).to(device)
    images = torch.randint(0, 256, (batch, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator).to(device)
    views = crop_resize(images, windows, size)
    features = torch.rand(batch, 2048, 7, 7, generator=generator).to(device)
    weights = torch.rand(batch, 2048, generator=generator).to(device)
    rows, negatives = 65536, min(4096, 65535)
    bank = torch.randn(rows, 128, generator=generator).to(device)
    queries = torch.randn(batch, 128, generator=generator).to(device)
    bank_rows = torch.randint(0, rows, (batch, 1 + negatives), generator=generator).to(device)
    cropped_bytes = int(windows[..., 2].astype(np.int64).ravel() @ windows[..., 3].astype(np.int64).ravel()) * 3
    return {
        "attention_boxes": (lambda: attention_boxes(features, weights, size=size), features.nbytes),
        "sample_windows": (lambda: sample_windows(boxes, sizes, **key), boxes.nbytes + windows.nbytes),
        "sample_photometrics": (
            lambda: sample_photometrics(MOCO_V2, 0, 0, torch.from_numpy(indices), 2),
            photometrics.nbytes,
        ),
        "crop_resize": (lambda: crop_resize(images, windows, size), cropped_bytes + views.nbytes),
        "augment": (lambda: augment(views, photometrics, MEAN, STD), 5 * views.nbytes),
        "bank_logits": (lambda: bank_logits(queries, bank, bank_rows), bank_rows.numel() * (128 * 4 + 8 + 4)),
    }
