"""The folder engine with crops on the GPU: whole images are uploaded, or decoded there by nvJPEG."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.core import Epoch, PendingBatch
from saga_fast.loaders.decode import DecodeError, read_bytes, read_pixels
from saga_fast.loaders.loader import Int64
from saga_fast.loaders.plan import Plan, view_bytes

Contents = list[torch.Tensor | None]
"""Of a batch: an image's pixels (H, W, 3) uint8 or its file's bytes (n,) uint8; None for an undecodable image."""


class DeviceCrops:
    """Batches of images that threads read, threads or nvJPEG decode, and the device crops together.

    With ``decode: gpu`` JPEGs are decoded by torchvision's batched nvJPEG, whose chroma upsampling differs from
    libjpeg's by some levels at coloured edges; files that nvJPEG refuses are decoded on the CPU.
    """

    def __init__(self, epoch: Epoch, pool: ThreadPoolExecutor) -> None:
        self._epoch, self._pool = epoch, pool

    def start(self, indices: Int64) -> PendingBatch:
        """Submit the tasks of a batch, see :meth:`saga_fast.loaders.core.PrefetchLoader.start_epoch`."""
        parts = self._epoch.tasks(len(indices))
        return partial(self._finish, indices, [self._pool.submit(self._read_all, indices[part]) for part in parts])

    def _finish(self, indices: Int64, tasks: list[Future[Contents]]) -> Batch:
        images = self._decoded(indices, [content for task in tasks for content in task.result()])
        good = np.array([image is not None for image in images])
        decoded = self._cropped(indices[good], [image for image in images if image is not None])
        if good.all():
            return self._epoch.batch(indices, decoded, good, self._views_of)
        views = decoded.new_empty((len(images), self._epoch.view_bytes))
        views[torch.from_numpy(good).to(views.device)] = decoded
        return self._epoch.batch(indices, views, good, self._views_of)

    def _cropped(self, indices: Int64, images: Sequence[torch.Tensor]) -> torch.Tensor:
        sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
        windows = self._epoch.windows(indices, sizes)
        return crop_on_device(images, windows, self._epoch.plan, self._epoch.options.device)

    def _read_all(self, indices: Int64) -> Contents:
        return [self._read(int(index), keep_jpeg=self._epoch.options.decode == "gpu") for index in indices]

    def _read(self, index: int, *, keep_jpeg: bool) -> torch.Tensor | None:
        epoch = self._epoch
        try:
            if keep_jpeg and (data := read_bytes(epoch.source, index))[:2] == b"\xff\xd8":
                return torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return torch.from_numpy(read_pixels(epoch.source, index, epoch.options.max_pixels))
        except DecodeError as error:
            self._epoch.bad.add(index, str(error))
            return None

    def _decoded(self, indices: Int64, contents: Contents) -> Contents:
        """The contents, with JPEG files decoded."""
        encoded = [slot for slot, content in enumerate(contents) if content is not None and content.ndim == 1]
        files = [content for content in contents if content is not None and content.ndim == 1]
        for slot, pixels in zip(encoded, decode_jpegs(files, self._epoch.options.device), strict=True):
            contents[slot] = self._read(int(indices[slot]), keep_jpeg=False) if pixels is None else pixels
        return contents

    def _views_of(self, index: int) -> torch.Tensor | None:
        image = self._read(index, keep_jpeg=False)
        return None if image is None else self._cropped(np.array([index]), [image])[0]


def decode_jpegs(files: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor | None]:
    """The pixels (H, W, 3) uint8, on ``device``, of JPEG files (n,) uint8; None for files that nvJPEG refuses."""
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
        images: list[torch.Tensor | None] = []
        for file in files:
            try:
                images.extend(decode([file]))
            except RuntimeError:
                images.append(None)
        return images


def crop_on_device(
    images: Sequence[torch.Tensor], windows: npt.NDArray[np.int32], plan: Plan, device: torch.device
) -> torch.Tensor:
    """The views of images of any sizes: (H, W, 3) uint8 each, on the CPU or ``device``, windows (B, V, 4).

    Images whose sides have the same next powers of two share a padded batch, so that a single large image does not
    enlarge the padded memory of all images.

    Returns:
        (B, view_bytes) uint8 on the device.
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
