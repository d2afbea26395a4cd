"""The dali engine: DALI decodes images, on the CPU the rectangle that their windows share, and our kernel crops them.

Three stages work on three batches at once: threads read the files and draw the windows, DALI decodes, and the same
threads (or the GPU) crop. DALI's ``resize`` is not used: two views of a 500 x 375 JPEG come at 418 to 496 images/s from
it and at 1226 from our kernel (2 cores), and its levels differ by up to 9, with its regions of interest by up to 19,
because they read pixels outside of the window. The pipeline does not depend on a plan, so a new box table, or another
size of the views, is in use from the next epoch on without building anything.

DALI gets the JPEGs that it surely decodes like the other engines (see :mod:`saga_fast.loaders.jpeg`). All other
images are decoded and cropped by the threads that read them, as in the folder engine. So is a batch with an image that
DALI cannot decode: DALI raises for the whole batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from saga_fast.kernels.crop_resize import ImageTable, crop_resize_image
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.batch_memory import BatchMemory
from saga_fast.loaders.core import Epoch
from saga_fast.loaders.cpu_crops import CpuCrops
from saga_fast.loaders.dali.decoder import NOTHING, Decoder, DecoderError, Encoded
from saga_fast.loaders.decode import Pixels
from saga_fast.loaders.device_images import InUse
from saga_fast.loaders.encoded import read_images
from saga_fast.loaders.jpeg import jpeg_sizes
from saga_fast.loaders.loader import Int64, Loader, ResolvedOptions
from saga_fast.loaders.plan import Plan
from saga_fast.loaders.source import Source
from saga_fast.runtime.device import to_device
from saga_fast.runtime.threads import end_pool

log = logging.getLogger(__name__)
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Read:
    """A batch, or a part of one, whose files were read: what DALI decodes, and what the threads have cropped.

    Attributes:
        indices: (B,) int64.
        rows: (n,) int64, the positions in the batch of the images that DALI decodes.
        encoded: these n images and the rectangles to decode.
        windows: (n, V, 4) int32, in the rectangles' pixels.
        cropped_rows: (m,) int64, the positions of the images that the threads have decoded and cropped.
        cropped_views: (m, view_bytes) uint8.
        good: (B,) bool, False for undecodable images.
    """

    indices: Int64
    rows: Int64
    encoded: Encoded
    windows: Int32
    cropped_rows: Int64
    cropped_views: Pixels
    good: npt.NDArray[np.bool_]


class DaliLoader(Loader):
    """See :func:`saga_fast.loaders.open_loader`."""

    def __init__(self, source: Source, plan: Plan, options: ResolvedOptions, bad: BadImages) -> None:
        super().__init__(source, plan, options, bad)
        self._on_gpu = options.crop == "gpu"
        # A thread that drives the stages has the next batch ready. A GPU is driven by the caller's thread, in whose
        # stream it works, and which does not wait for it.
        self._driver = not self._on_gpu and options.prefetch > 0
        self._memory = BatchMemory(keep=options.prefetch + 2)
        self._in_use = InUse()  # encoded bytes: DALI takes them without a copy, and a GPU works later
        self._decoders: list[Decoder] = []  # idle ones
        self._refused: set[int] = set()  # images of a batch that DALI could not decode: decoded by the threads from now

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="saga-fast-dali")
        epoch = Epoch(self, self._memory)
        batches = self._batches(CpuCrops(epoch, pool), pool)
        try:
            with closing(batches), closing(_one_ahead(batches) if self._driver else batches) as ready:
                try:
                    for batch in ready:
                        if len(batch.index):
                            yield batch
                finally:
                    epoch.ahead.stop()  # before the driver and the threads end, which may wait for it
        finally:
            end_pool(pool)

    def _batches(self, crops: CpuCrops, pool: ThreadPoolExecutor) -> Generator[Batch, None, None]:
        reads = self._reads(crops, pool)
        fed: deque[_Read] = deque()  # batches that DALI works on

        def feed() -> Iterator[Encoded]:
            for read in reads:
                fed.append(read)
                yield read.encoded

        while True:
            decoder = self._decoders.pop() if self._decoders else self._build()
            try:
                with closing(decoder.run(feed())) as decoded:
                    for images in decoded:
                        yield self._cropped(crops, fed[0], images, pool)
                        read = fed.popleft()
                        if self._on_gpu and self.options.device.type == "cuda":
                            self._in_use.keep(read, self.options.device)
                return
            except DecoderError as error:
                refused = fed[0].indices[fed[0].rows].tolist()
                log.warning("DALI: %s; decoding these %d images without it from now on", error, len(refused))
                self._refused.update(refused)
                while fed:
                    yield self._without_dali(crops, fed.popleft().indices)
            finally:
                if decoder.works:
                    self._decoders.append(decoder)

    def _build(self) -> Decoder:
        options = self.options
        return Decoder(
            batch_size=options.local_batch_size,
            threads=options.threads,
            depth=options.prefetch if self._driver else options.prefetch + 1,
            gpu=options.device if self._on_gpu else None,
            decode_on_gpu=options.decode == "gpu",
        )

    def _reads(self, crops: CpuCrops, pool: ThreadPoolExecutor) -> Iterator[_Read]:
        """The epoch's batches in turn; while one is decoded, the files of the next are read.

        By threads, not in DALI's callback: 1091 images/s against 1062, and 508 against 331 where a file takes 2 ms. Not
        by DALI's worker processes either, which would not see a new table.
        """
        ahead: deque[list[Future[_Read]]] = deque()
        for indices in crops.epoch.ahead.lead(self.index_batches(), self.options.prefetch):
            parts = crops.epoch.tasks(len(indices))
            ahead.append([pool.submit(self._read, crops, indices[part]) for part in parts])
            if len(ahead) > min(self.options.prefetch, 1):
                yield _join([task.result() for task in ahead.popleft()])
        while ahead:
            yield _join([task.result() for task in ahead.popleft()])

    def _read(self, crops: CpuCrops, indices: Int64) -> _Read:
        files = read_images(crops.epoch.source, indices)  # those in error are read again, and listed, by crops.fill
        all_sizes = jpeg_sizes(files, self.options.max_pixels)
        all_sizes[[index in self._refused for index in indices.tolist()]] = 0
        rows, cropped_rows = np.flatnonzero(all_sizes[:, 0]), np.flatnonzero(all_sizes[:, 0] == 0)
        epoch = crops.epoch
        cropped_views = np.empty((len(cropped_rows), epoch.view_bytes), np.uint8)
        windows, rectangles = np.empty((0, len(epoch.sides), 4), np.int32), np.empty((0, 4), np.int32)
        good = np.ones(len(indices), np.bool_)
        if len(cropped_rows):
            good[cropped_rows] = crops.fill(indices[cropped_rows], cropped_views)
        if len(rows):
            windows = epoch.windows(indices[rows], all_sizes[rows])
            near, far = windows[..., :2].min(1), (windows[..., :2] + windows[..., 2:]).max(1)
            near = np.zeros_like(near) if self.options.decode == "gpu" else near
            rectangles = np.concatenate([near, far - near], 1)
            windows = np.concatenate([windows[..., :2] - near[:, None], windows[..., 2:]], 2)
        return _Read(
            indices=indices,
            rows=rows,
            encoded=Encoded([files[row] for row in rows], rectangles),
            windows=windows,
            cropped_rows=cropped_rows,
            cropped_views=cropped_views,
            good=good,
        )

    def _cropped(self, crops: CpuCrops, read: _Read, images: Any, pool: ThreadPoolExecutor) -> Batch:
        epoch = crops.epoch
        shape = (len(read.indices), epoch.view_bytes)
        if self._on_gpu:
            views = _crop_on_gpu(read, images, epoch.plan, self.options.device, shape)
        else:
            views = epoch.new_tensor(shape)
            target = views.numpy()
            target[read.cropped_rows] = read.cropped_views
            pixels = [np.asarray(images[n]) for n in range(len(read.rows))]
            for task in [pool.submit(_crop, epoch, read, pixels, part, target) for part in epoch.tasks(len(pixels))]:
                task.result()
        return epoch.batch(read.indices.copy(), views, read.good, crops.views_of)

    def _without_dali(self, crops: CpuCrops, indices: Int64) -> Batch:
        batch = crops.start(indices.copy())()
        return batch.to(self.options.device) if self._on_gpu else batch


def _one_ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches, each made by a separate thread while the batch before it is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="saga-fast-dali-driver") as driver:
        coming = driver.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = driver.submit(next, batches, None)
            yield batch


def _join(parts: list[_Read]) -> _Read:
    """The whole batch of its parts."""
    starts = np.cumsum([0] + [len(part.indices) for part in parts[:-1]])
    images = [image for part in parts for image in part.encoded.images]
    rectangles = np.concatenate([part.encoded.rectangles for part in parts])
    return _Read(
        indices=np.concatenate([part.indices for part in parts]),
        rows=np.concatenate([start + part.rows for start, part in zip(starts, parts, strict=True)]),
        encoded=Encoded(images, rectangles) if images else NOTHING,
        windows=np.concatenate([part.windows for part in parts]),
        cropped_rows=np.concatenate([start + part.cropped_rows for start, part in zip(starts, parts, strict=True)]),
        cropped_views=np.concatenate([part.cropped_views for part in parts]),
        good=np.concatenate([part.good for part in parts]),
    )


def _crop(epoch: Epoch, read: _Read, pixels: list[Pixels], part: slice, views: Pixels) -> None:
    for n in range(*part.indices(len(pixels))):
        crop_resize_image(pixels[n], read.windows[n], epoch.sides, views[read.rows[n]])


def _crop_on_gpu(read: _Read, images: Any, plan: Plan, device: torch.device, shape: tuple[int, int]) -> torch.Tensor:
    """The views (B, view_bytes) in torch's current stream, in which DALI also frees the images' memory."""
    if not len(read.rows):
        return to_device(torch.from_numpy(read.cropped_views), device)
    decoded = crop_batch(_on_device(images, len(read.rows), device), read.windows, plan)
    if len(read.rows) == len(read.indices):
        return decoded
    views = torch.empty(shape, dtype=torch.uint8, device=device)
    views.index_copy_(0, to_device(torch.from_numpy(read.rows), device), decoded)
    cropped = to_device(torch.from_numpy(read.cropped_views), device)
    return views.index_copy_(0, to_device(torch.from_numpy(read.cropped_rows), device), cropped)


def _on_device(images: Any, count: int, device: torch.device) -> ImageTable | list[torch.Tensor]:
    """The first ``count`` images (H, W, 3) uint8 of a list of DALI's, where they lie."""
    if device.type != "cuda":
        return [from_dlpack(images[n]) for n in range(count)]
    # By address: making a torch tensor of each takes some 20 us.
    addresses = np.array([images[n].data_ptr() for n in range(count)], np.int64)
    sizes = np.array([shape[:2] for shape in images.shape()[:count]], np.int64)
    strides = np.stack([3 * sizes[:, 1], np.full(count, 3), np.full(count, 1)], 1)
    return ImageTable(addresses, sizes, strides, device, images)
