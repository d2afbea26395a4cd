"""The folder engine where views are cropped on the GPU: whole images travel there, or are decoded there by nvJPEG."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.loaders.batch import Batch, crop_batch, make_batch
from saga_fast.loaders.decode import DecodeError, decode_image
from saga_fast.loaders.loader import Int64, LoaderOptions, substitutes
from saga_fast.loaders.plan import Plan, view_bytes
from saga_fast.loaders.source import Source

Contents = list[torch.Tensor | None]
"""Of a batch: an image's pixels (H, W, 3) uint8 or its file's bytes (n,) uint8; None where there is none."""


@dataclass(frozen=True)
class Pending:
    """A batch under way: its indices, its tasks in their order, and the memory that they fill, if any."""

    indices: Int64
    tasks: list[Future[Any]]
    views: torch.Tensor | None = None


class CropsOnDevice:
    """Batches whose images are read by threads, decoded by them or by nvJPEG, and cropped on the device together.

    With ``decode: gpu`` JPEGs go through torchvision's batched nvJPEG, whose chroma upsampling differs from libjpeg's
    by some levels at coloured edges; what nvJPEG refuses is decoded on the CPU.
    """

    def __init__(self, source: Source, plan: Plan, epoch: int, options: LoaderOptions, task_size: int) -> None:
        self._source, self._plan, self._epoch, self._options = source, plan, epoch, options
        self._task_size = task_size

    def start(self, pool: ThreadPoolExecutor, indices: Int64) -> Pending:
        """Put a batch under way."""
        parts = (indices[at : at + self._task_size] for at in range(0, len(indices), self._task_size))
        return Pending(indices.copy(), [pool.submit(self._read_all, part) for part in parts])

    def finish(self, pending: Pending) -> Batch:
        """The batch, on the device."""
        indices, tasks = pending.indices, pending.tasks
        images = self._decoded(indices, [content for task in tasks for content in task.result()])
        bad = [slot for slot, image in enumerate(images) if image is None]
        for slot in bad if self._options.shuffle else ():
            indices[slot], images[slot] = self._substitute(int(indices[slot]), indices)
        if bad and not self._options.shuffle:
            indices = np.delete(indices, bad)
        good = [image for image in images if image is not None]
        sizes = np.array([image.shape[:2] for image in good], np.int64).reshape(-1, 2)
        windows = self._plan.windows(self._epoch, indices, sizes)
        return make_batch(
            crop_on_device(good, windows, self._plan, self._options.device), indices, self._source, self._plan
        )

    def _read_all(self, indices: Int64) -> Contents:
        return [self._read(int(index), keep_jpeg=self._options.decode == "gpu") for index in indices]

    def _read(self, index: int, *, keep_jpeg: bool) -> torch.Tensor | None:
        try:
            data = self._source.read(index)
            if keep_jpeg and data[:2] == b"\xff\xd8":
                return torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return torch.from_numpy(decode_image(data, self._options.max_pixels))
        except (DecodeError, OSError) as error:
            self._options.bad.add(index, str(error))
            return None

    def _decoded(self, indices: Int64, contents: Contents) -> Contents:
        """The contents with JPEG files decoded."""
        encoded = [slot for slot, content in enumerate(contents) if content is not None and content.ndim == 1]
        files = [content for content in contents if content is not None and content.ndim == 1]
        for slot, pixels in zip(encoded, decode_jpegs(files, self._options.device), strict=True):
            contents[slot] = self._read(int(indices[slot]), keep_jpeg=False) if pixels is None else pixels
        return contents

    def _substitute(self, index: int, taken: Int64) -> tuple[int, torch.Tensor]:
        source, options = self._source, self._options
        for other in substitutes(source, options.bad, index, taken, seed=options.seed, epoch=self._epoch):
            image = self._read(other, keep_jpeg=False)
            if image is not None:
                return other, image
        raise AssertionError("substitutes raises when it has no more")


def decode_jpegs(files: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor | None]:
    """JPEG files (n,) uint8 to (H, W, 3) uint8 on ``device``, all at once; None for those that its decoder refuses."""
    from torchvision.io import ImageReadMode, decode_jpeg  # torchvision takes seconds to import

    def decode(part: list[torch.Tensor]) -> list[torch.Tensor]:
        with warnings.catch_warnings():
            # torchvision 0.29 announces that its decoders will give way to TorchCodec's.
            warnings.filterwarnings("ignore", message=".*TorchCodec", category=DeprecationWarning)
            images = decode_jpeg(part, mode=ImageReadMode.RGB, device=device)
        return [image.permute(1, 2, 0) for image in images]

    if not files:
        return []
    try:
        return [*decode(list(files))]
    except RuntimeError:  # one of them, and torchvision does not say which
        found: list[torch.Tensor | None] = []
        for file in files:
            try:
                found.extend(decode([file]))
            except RuntimeError:
                found.append(None)
        return found


def crop_on_device(
    images: Sequence[torch.Tensor], windows: npt.NDArray[np.int32], plan: Plan, device: torch.device
) -> torch.Tensor:
    """Crop images of any sizes there: (H, W, 3) uint8 each, on the CPU or the device, windows (B, V, 4).

    Images whose sides have the same powers of two above them share a padded batch, so that one that is larger than the
    others does not make all of them as large.

    Returns:
        (B, bytes) uint8 on the device, see :func:`make_batch`.
    """
    views = torch.empty((len(windows), view_bytes(plan)), dtype=torch.uint8, device=device)
    groups: dict[tuple[int, int, torch.device], list[int]] = {}
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        groups.setdefault(((height - 1).bit_length(), (width - 1).bit_length(), image.device), []).append(row)
    for (_, _, place), rows in groups.items():
        height, width = (max(images[row].shape[axis] for row in rows) for axis in (0, 1))
        pinned = device.type == "cuda" and place.type == "cpu"
        padded = torch.empty((len(rows), height, width, 3), dtype=torch.uint8, device=place, pin_memory=pinned)
        for slot, row in enumerate(rows):
            padded[slot, : images[row].shape[0], : images[row].shape[1]] = images[row]
        views[rows] = crop_batch(padded.to(device, non_blocking=True), windows[rows], plan)
    return views
