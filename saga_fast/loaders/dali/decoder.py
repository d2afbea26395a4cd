"""A DALI pipeline that decodes images batch by batch: one rectangle of each on the CPU, all of it on a GPU.

nvJPEG before CUDA 13.3 decodes no rectangle with libjpeg's smooth chroma: DALI would decode on the CPU instead, at a
seventh of the speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

_PIXEL = np.frombuffer(simplejpeg.encode_jpeg(np.zeros((1, 1, 3), np.uint8), 90, "RGB"), np.uint8)


class DecoderError(Exception):
    """DALI could not decode an image of the next batch."""


@dataclass(frozen=True)
class Encoded:
    """The input of DALI for a batch.

    Attributes:
        images: n JPEGs (bytes,) uint8, 1 <= n <= batch_size; unchanged until they have been decoded.
        rectangles: (n, 4) int32 [top, left, height, width], inside the images; the GPU decodes whole images.
    """

    images: list[npt.NDArray[np.uint8]]
    rectangles: npt.NDArray[np.int32]


NOTHING = Encoded([_PIXEL], np.array([[0, 0, 1, 1]], np.int32))
"""A batch for which DALI has nothing to do: DALI has no empty batches."""


class Decoder:
    """A pipeline, built once and run any number of times, one run after another.

    The images are fed through DALI's ``external_source``, which requests a batch when it has room for it.

    Args:
        batch_size: the most images in a batch.
        threads: DALI's threads, which live as long as the pipeline.
        depth: batches in progress at a time.
        gpu: the GPU that the pixels are returned on, or None.
        decode_on_gpu: whether they are decoded there or on the CPU.
    """

    def __init__(
        self, *, batch_size: int, threads: int, depth: int, gpu: torch.device | None, decode_on_gpu: bool
    ) -> None:
        self._gpu, self._whole = gpu, decode_on_gpu
        self._batches: Iterator[Encoded] = iter(())
        self.works = True  # until an image cannot be decoded: DALI then accepts no further batch
        self._pipeline: Any = Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=None if gpu is None else _number(gpu),
            prefetch_queue_depth=depth,
        )
        with self._pipeline:
            count = 1 if decode_on_gpu else 2
            images, *rectangles = fn.external_source(
                source=self._next,
                num_outputs=count,
                batch=True,
                dtype=[types.DALIDataType.UINT8, types.DALIDataType.INT32][:count],
                ndim=[1, 1][:count],
                no_copy=True,  # run()'s caller holds them
            )
            options: dict[str, Any] = {
                "output_type": types.DALIImageType.RGB,
                "adjust_orientation": False,
                "jpeg_fancy_upsampling": True,  # as libjpeg does by default
            }
            if decode_on_gpu:
                pixels = fn.decoders.image(images, device="mixed", **options)
            else:
                start, shape = rectangles[0][:2], rectangles[0][2:]
                pixels = fn.decoders.image_slice(images, start=start, shape=shape, axes=[0, 1], device="cpu", **options)
            self._pipeline.set_outputs(pixels.gpu() if gpu is not None and not decode_on_gpu else pixels)
        self._pipeline.build()

    def run(self, batches: Iterable[Encoded]) -> Generator[Any, None, None]:
        """The pixels of each batch: n DALI tensors (height, width, 3) uint8, on a GPU in torch's current stream.

        The tensors own their memory, and their content does not change. ``batches`` is advanced in the caller's thread,
        as far as ``depth`` allows. A run may be closed early.

        Raises:
            DecoderError: the next batch cannot be decoded; the pipeline cannot be used any more.
        """
        self._batches = iter(batches)
        try:
            while True:
                self._pipeline.schedule_run()
                try:
                    (pixels,) = self._pipeline.share_outputs(self._stream())
                except StopIteration:
                    return
                except RuntimeError as error:
                    self.works = False
                    raise DecoderError(_reason(error)) from error
                yield pixels
                self._pipeline.release_outputs()
        finally:
            self._batches = iter(())
            if self.works and self._pipeline._pipe:  # DALI destroys it when Python exits
                self._drain()

    def _next(self) -> tuple[Any, ...]:
        batch = next(self._batches)
        return (batch.images,) if self._whole else (batch.images, batch.rectangles)

    def _stream(self) -> Any:
        return None if self._gpu is None else torch.cuda.current_stream(self._gpu)

    def _drain(self) -> None:
        """Wait for the batches in progress, and prepare the next run."""
        self._pipeline.release_outputs()
        while True:
            self._pipeline.schedule_run()
            try:
                self._pipeline.share_outputs()
            except StopIteration:
                break
            except RuntimeError:
                self.works = False
                return
            self._pipeline.release_outputs()
        self._pipeline.reset()
        # DALI's buffers, 15 to 36 MB and of a new size for each batch, fragment the heaps of the threads that allocate
        # them: with 600 images an epoch, resident memory grows from 869 to 1077 MB in 45 epochs without this call, and
        # stays below 850 MB with it. It takes 5 ms.
        ctypes.CDLL(None).malloc_trim(0)


def _number(gpu: torch.device) -> int:
    return torch.cuda.current_device() if gpu.index is None else gpu.index


def _reason(error: RuntimeError) -> str:
    """The line of DALI's message that names the cause."""
    lines = [line.strip(" :") for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("Failed")), lines[0])
