"""The DALI engine: DALI decodes the rectangle that an image's windows share, our kernel cuts the views from it.

Three stages, each of them at work on another batch: threads read the files and draw the windows, DALI decodes, and the
same threads (or the GPU) crop. DALI's own ``resize`` is not used: two views of a 500 x 375 JPEG come at 418 to 496
images/s from it and at 1226 from our kernel (2 cores), and some of its levels are 9 off, 19 with its regions of
interest, which let in pixels from outside of the window. The pipeline knows nothing of a plan, so that a new box table,
or another size of the views, is taken by the next epoch without building anything.

DALI decodes the JPEGs that it is sure to decode as the other engines do (see :mod:`dali_jpeg`). All other images are
decoded and cropped as in the folder engine, by the threads that read them. So is a batch in which DALI finds an image
that it cannot decode: it raises for the whole batch then.
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

from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.loaders.batch import Batch, crop_batch
from saga_fast.loaders.batch_memory import BatchMemory
from saga_fast.loaders.dali_decoder import NOTHING, Decoder, DecoderError, Encoded
from saga_fast.loaders.dali_jpeg import jpeg_size
from saga_fast.loaders.decode import Pixels
from saga_fast.loaders.folder import EpochCrops
from saga_fast.loaders.loader import Int64, Loader, LoaderOptions
from saga_fast.loaders.plan import Plan, view_bytes
from saga_fast.loaders.source import Source

log = logging.getLogger(__name__)
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Read:
    """A batch, or a part of one, that is ready for DALI.

    Attributes:
        indices: (B,) int64.
        rows: (n,) int64, the positions in the batch of what DALI decodes.
        encoded: these n images and the rectangles to decode.
        windows: (n, V, 4) int32, in the rectangles' pixels.
        own_rows: (m,) int64, the positions of what has been decoded and cropped already.
        own_views: (m, bytes) uint8, see :func:`make_batch`.
        good: (B,) bool, False for what cannot be decoded.
    """

    indices: Int64
    rows: Int64
    encoded: Encoded
    windows: Int32
    own_rows: Int64
    own_views: Pixels
    good: npt.NDArray[np.bool_]


class DaliLoader(Loader):
    """See :func:`saga_fast.loaders.open_loader`."""

    def __init__(self, source: Source, plan: Plan, options: LoaderOptions) -> None:
        super().__init__(source, plan, options)
        self._on_gpu = options.crop == "gpu"
        # A thread that drives the stages has the next batch ready; a GPU is driven by the caller, in whose stream it
        # works, and which it does not hold up.
        self._driver = not self._on_gpu and options.prefetch > 0
        self._memory = BatchMemory(keep=options.prefetch + 2)
        self._task_size = max(1, min(16, -(-options.batch_size // (2 * options.threads))))  # as in the folder engine
        self._decoders: list[Decoder] = []  # those that no iteration is using
        self._refused: set[int] = set()  # images of a batch that DALI could not decode: not given to it again

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="saga-fast-dali")
        options = self.options
        work = EpochCrops(self.source, self.plan, self.epoch, options.seed, self.bad, options.max_pixels)
        batches = self._batches(work, self.order(), pool)
        try:
            with closing(batches), closing(_one_ahead(batches) if self._driver else batches) as made:
                for batch in made:
                    if len(batch.index):
                        yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _batches(self, work: EpochCrops, order: Int64, pool: ThreadPoolExecutor) -> Generator[Batch, None, None]:
        reads = self._reads(work, order, pool)
        fed: deque[_Read] = deque()  # what DALI is at work on

        def feed() -> Iterator[Encoded]:
            for read in reads:
                fed.append(read)
                yield read.encoded

        while True:
            decoder = self._decoders.pop() if self._decoders else self._build()
            try:
                with closing(decoder.run(feed())) as decoded:
                    for images in decoded:
                        yield self._cropped(work, fed[0], images, pool)
                        fed.popleft()
                return
            except DecoderError as error:
                refused = fed[0].indices[fed[0].rows].tolist()
                log.warning("DALI: %s; decoding these %d images without it from now on", error, len(refused))
                self._refused.update(refused)
                while fed:
                    yield self._without_dali(work, fed.popleft().indices, pool)
            finally:
                if decoder.works:
                    self._decoders.append(decoder)

    def _build(self) -> Decoder:
        options = self.options
        return Decoder(
            batch_size=options.batch_size,
            threads=options.threads,
            depth=options.prefetch if self._driver else options.prefetch + 1,
            gpu=options.device if self._on_gpu else None,
            decode_on_gpu=options.decode == "gpu",
        )

    def _reads(self, work: EpochCrops, order: Int64, pool: ThreadPoolExecutor) -> Iterator[_Read]:
        """The epoch's batches in turn; while one is decoded, the files of the next are read.

        By threads, not in DALI's callback: 1091 images/s against 1062, and 508 against 331 where a file takes 2 ms. Nor
        by DALI's worker processes, which would not see a new table.
        """
        ahead: deque[list[Future[_Read]]] = deque()
        for start in range(0, len(order), self.options.batch_size):
            indices = order[start : start + self.options.batch_size]
            ahead.append([pool.submit(self._read, work, indices[part]) for part in self._parts(len(indices))])
            if len(ahead) > min(self.options.prefetch, 1):
                yield _join([task.result() for task in ahead.popleft()])
        while ahead:
            yield _join([task.result() for task in ahead.popleft()])

    def _read(self, work: EpochCrops, indices: Int64) -> _Read:
        images: list[bytes] = []
        rows, sizes, own_rows = [], [], []
        for row, index in enumerate(indices.tolist()):
            data = b"" if index in self._refused else _read_bytes(self.source, index)
            size = jpeg_size(data, self.options.max_pixels)
            if size is None:
                own_rows.append(row)
            else:
                images.append(data)
                rows.append(row)
                sizes.append(size)
        plan = work.plan
        own_views = np.empty((len(own_rows), view_bytes(plan)), np.uint8)
        windows, rectangles = np.empty((0, len(work.sides), 4), np.int32), np.empty((0, 4), np.int32)
        good = np.ones(len(indices), np.bool_)
        if own_rows:
            good[own_rows] = work.fill(indices[own_rows], own_views)
        if rows:
            windows = work.windows(indices[rows], np.array(sizes, np.int64))
            near, far = windows[..., :2].min(1), (windows[..., :2] + windows[..., 2:]).max(1)
            rectangles = np.concatenate([near, far - near], 1)
            windows = np.concatenate([windows[..., :2] - near[:, None], windows[..., 2:]], 2)
        encoded = Encoded(images, rectangles)
        return _Read(indices, np.array(rows, np.int64), encoded, windows, np.array(own_rows, np.int64), own_views, good)

    def _cropped(self, work: EpochCrops, read: _Read, images: Any, pool: ThreadPoolExecutor) -> Batch:
        shape = (len(read.indices), view_bytes(work.plan))
        if self._on_gpu:
            views = torch.empty(shape, dtype=torch.uint8, device=self.options.device)
            _crop_on_gpu(read, images, work.plan, views)
        else:
            views = self._tensor(shape)
            target = views.numpy()
            target[read.own_rows] = read.own_views
            pixels = [np.asarray(images[n]) for n in range(len(read.rows))]
            for task in [pool.submit(_crop, work, read, pixels, part, target) for part in self._parts(len(pixels))]:
                task.result()
        return work.batch(read.indices.copy(), views, read.good, substitute=self.options.shuffle)

    def _without_dali(self, work: EpochCrops, indices: Int64, pool: ThreadPoolExecutor) -> Batch:
        views = self._tensor((len(indices), view_bytes(work.plan)))
        target = views.numpy()
        tasks = [pool.submit(work.fill, indices[part], target[part]) for part in self._parts(len(indices))]
        good = np.concatenate([task.result() for task in tasks])
        views = views.to(self.options.device) if self._on_gpu else views
        return work.batch(indices.copy(), views, good, substitute=self.options.shuffle)

    def _tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self.options.device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return self._memory.tensor(shape)

    def _parts(self, count: int) -> list[slice]:
        return [slice(start, start + self._task_size) for start in range(0, count, self._task_size)]


def _one_ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same, each made on a thread of its own while the one before it is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="saga-fast-dali-driver") as driver:
        coming = driver.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = driver.submit(next, batches, None)
            yield batch


def _read_bytes(source: Source, index: int) -> bytes:
    try:
        return source.read(index)
    except OSError:
        return b""  # :meth:`EpochCrops.fill` will list it, with the reason


def _join(parts: list[_Read]) -> _Read:
    """One batch of its parts."""
    starts = np.cumsum([0] + [len(part.indices) for part in parts[:-1]])
    images = [image for part in parts for image in part.encoded.images]
    rectangles = np.concatenate([part.encoded.rectangles for part in parts])
    return _Read(
        indices=np.concatenate([part.indices for part in parts]),
        rows=np.concatenate([start + part.rows for start, part in zip(starts, parts, strict=True)]),
        encoded=Encoded(images, rectangles) if images else NOTHING,
        windows=np.concatenate([part.windows for part in parts]),
        own_rows=np.concatenate([start + part.own_rows for start, part in zip(starts, parts, strict=True)]),
        own_views=np.concatenate([part.own_views for part in parts]),
        good=np.concatenate([part.good for part in parts]),
    )


def _crop(work: EpochCrops, read: _Read, pixels: list[Pixels], part: slice, views: Pixels) -> None:
    for n in range(*part.indices(len(pixels))):
        crop_resize_image(pixels[n], read.windows[n], work.sides, views[read.rows[n]])


def _crop_on_gpu(read: _Read, images: Any, plan: Plan, views: torch.Tensor) -> None:
    """Fill ``views`` (B, bytes) in torch's current stream, in whose order DALI frees the images' memory, too.

    Image by image, because a padded batch would be as large as its largest image for every one of them.
    """
    if len(read.own_rows):
        views[torch.from_numpy(read.own_rows)] = torch.from_numpy(read.own_views).to(views.device)
    windows = torch.from_numpy(read.windows).to(views.device)
    for n, row in enumerate(read.rows.tolist()):
        views[row] = crop_batch(from_dlpack(images[n])[None], windows[n : n + 1], plan)[0]
