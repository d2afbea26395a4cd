"""The folder engine with crops on the GPU: whole images are uploaded, or decoded there by nvJPEG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.core import Epoch, PendingBatch
from saga_fast.loaders.decode import DecodeError, Pixels, decode_image
from saga_fast.loaders.decoded import load_images
from saga_fast.loaders.device_images import DeviceImages, Images, ImageStream, Slot
from saga_fast.loaders.encoded import Bytes, read_images
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
        self._stream.keep(images)
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
        """Read, decode and upload images: usual JPEGs are decoded to where the device copies them from."""
        options = self._epoch.options
        images = load_images(self._epoch.source, indices, options.max_pixels, self._stream.new_memory)
        self._epoch.bad.update({int(indices[n]): error for n, error in images.errors.items()})
        places = zip(images.begins.tolist(), images.sizes.tolist(), images.inside.tolist(), strict=True)
        slots = [Slot(begin, height, width) if inside else None for begin, (height, width), inside in places]
        return self._with(self._stream.upload_memory(images.memory, slots), images.elsewhere)

    def _read(self, indices: Int64) -> list[Content]:
        """The JPEG files that nvJPEG may decode, and the other images' pixels, which all threads decode."""
        files = read_images(self._epoch.source, indices)
        self._epoch.bad.update({int(indices[n]): error for n, error in files.errors.items()})
        on_gpu = jpeg_sizes(files, self._epoch.options.max_pixels)[:, 0] > 0
        contents: list[Content] = [None] * len(files)
        for n in range(len(files)):
            if on_gpu[n]:
                contents[n] = torch.from_numpy(files[n])
            elif n not in files.errors:
                contents[n] = self._pixels(int(indices[n]), files[n])
        return contents

    def _decode(self, indices: Int64, reads: list[Future[list[Content]]]) -> DeviceImages:
        """Decode the JPEG files of a batch on the device, and upload the other images."""
        contents = [content for read in reads for content in read.result()]
        files = {n: content for n, content in enumerate(contents) if isinstance(content, torch.Tensor)}
        pixels = {n: content for n, content in enumerate(contents) if isinstance(content, np.ndarray)}
        decoded = self._stream.decode(list(files.values()))
        images: Images = [None] * len(contents)
        for n, image in zip(files, decoded.images, strict=True):
            images[n] = image
            if image is None and (refused := self._pixels(int(indices[n]), files[n].numpy())) is not None:
                pixels[n] = refused
        return self._with(DeviceImages(images, decoded.event), pixels)

    def _pixels(self, index: int, file: Bytes) -> Pixels | None:
        """An image that nvJPEG does not decode; None if nothing can decode it."""
        try:
            return decode_image(file.tobytes(), self._epoch.options.max_pixels)
        except DecodeError as error:
            self._epoch.bad.add(index, str(error))
            return None

    def _with(self, arriving: DeviceImages, others: Mapping[int, Pixels]) -> DeviceImages:
        """Images that arrive, and other ones in these positions, which are uploaded."""
        if not others:
            return arriving
        images, uploaded = list(arriving.images), self._stream.upload(list(others.values()))
        for n, image in zip(others, uploaded.images, strict=True):
            images[n] = image
        return DeviceImages(images, uploaded.event)  # in the same stream, so it passes after the others, too

    def _views_of(self, index: int) -> torch.Tensor | None:
        (image,) = self._upload(np.array([index])).received()
        views = None if image is None else self._cropped(np.array([index]), [image])[0]
        self._stream.keep(image)
        return views
