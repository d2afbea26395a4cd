"""The folder engine with crops on the GPU: whole images are uploaded, or decoded there by nvJPEG."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.core import Epoch, PendingBatch
from saga_fast.loaders.decode import DecodeError, Pixels, decode_image, read_bytes
from saga_fast.loaders.device_images import DeviceImages, Images, ImageStream
from saga_fast.loaders.jpeg import jpeg_sizes
from saga_fast.loaders.loader import Int64
from saga_fast.runtime.device import to_device

Content = Pixels | torch.Tensor | None
"""An image's pixels (H, W, 3), a JPEG file (n,) for nvJPEG, or None for an undecodable image."""


class DeviceCrops:
    """Batches of images that threads read, threads or nvJPEG decode, and the device crops together.

    With ``decode: gpu`` nvJPEG gets the JPEGs that it surely decodes like the other engines
    (:mod:`saga_fast.loaders.jpeg`); all other images, and those that it refuses, are decoded by the threads.
    """

    def __init__(self, epoch: Epoch, pool: ThreadPoolExecutor) -> None:
        self._epoch, self._pool = epoch, pool
        self._stream = ImageStream(epoch.options.device)

    def start(self, indices: Int64) -> PendingBatch:
        """Submit the tasks of a batch, see :meth:`saga_fast.loaders.core.PrefetchLoader.start_epoch`."""
        parts = [indices[part] for part in self._epoch.tasks(len(indices))]
        if self._epoch.options.decode == "cpu":
            return partial(self._finish, indices, [self._pool.submit(self._upload, part) for part in parts])
        reads = [self._pool.submit(self._read, part) for part in parts]
        # It waits for the reads, which were submitted before it: threads take tasks in order, so it cannot deadlock.
        return partial(self._finish, indices, [self._pool.submit(self._decode, indices, reads)])

    def _finish(self, indices: Int64, tasks: list[Future[DeviceImages]]) -> Batch:
        images = [image for task in tasks for image in task.result().received()]
        good = np.array([image is not None for image in images])
        decoded = self._cropped(indices[good], [image for image in images if image is not None])
        if good.all():
            return self._epoch.batch(indices, decoded, good, self._views_of)
        views = decoded.new_empty((len(images), self._epoch.view_bytes))
        views.index_copy_(0, to_device(torch.from_numpy(np.flatnonzero(good)), views.device), decoded)
        return self._epoch.batch(indices, views, good, self._views_of)

    def _cropped(self, indices: Int64, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The views (n, view_bytes) uint8 of images on the device."""
        if not images:
            return torch.empty((0, self._epoch.view_bytes), dtype=torch.uint8, device=self._epoch.options.device)
        sizes = np.array([image.shape[:2] for image in images], np.int64)
        return crop_batch(images, self._epoch.windows(indices, sizes), self._epoch.plan)

    def _upload(self, indices: Int64) -> DeviceImages:
        return self._stream.upload([self._pixels(index, self._bytes(index)) for index in indices.tolist()])

    def _read(self, indices: Int64) -> list[Content]:
        """The JPEG files that nvJPEG may decode, and the other images' pixels."""
        files = [self._bytes(index) for index in indices.tolist()]
        decodable = jpeg_sizes([file or b"" for file in files], self._epoch.options.max_pixels)[:, 0] > 0
        return [
            torch.frombuffer(bytearray(file or b""), dtype=torch.uint8) if on_gpu else self._pixels(index, file)
            for index, file, on_gpu in zip(indices.tolist(), files, decodable, strict=True)
        ]

    def _decode(self, indices: Int64, reads: list[Future[list[Content]]]) -> DeviceImages:
        """Decode the JPEG files of a batch on the device, and upload the other images."""
        contents = [content for read in reads for content in read.result()]
        encoded = [slot for slot, content in enumerate(contents) if isinstance(content, torch.Tensor)]
        decoded = self._stream.decode([content for content in contents if isinstance(content, torch.Tensor)])
        pixels = [None if isinstance(content, torch.Tensor) else content for content in contents]
        for slot, image in zip(encoded, decoded.images, strict=True):
            if image is None:
                index = int(indices[slot])
                pixels[slot] = self._pixels(index, self._bytes(index))
        uploaded = self._stream.upload(pixels)
        images: Images = list(uploaded.images)
        for slot, image in zip(encoded, decoded.images, strict=True):
            images[slot] = images[slot] if image is None else image
        return DeviceImages(images, uploaded.event)  # in the same stream, so it passes after the decoded ones, too

    def _bytes(self, index: int) -> bytes | None:
        try:
            return read_bytes(self._epoch.source, index)
        except DecodeError as error:
            self._epoch.bad.add(index, str(error))
            return None

    def _pixels(self, index: int, file: bytes | None) -> Pixels | None:
        try:
            return None if file is None else decode_image(file, self._epoch.options.max_pixels)
        except DecodeError as error:
            self._epoch.bad.add(index, str(error))
            return None

    def _views_of(self, index: int) -> torch.Tensor | None:
        (image,) = self._upload(np.array([index])).received()
        return None if image is None else self._cropped(np.array([index]), [image])[0]
