"""Images on their way to the device that crops them: uploaded, or decoded there, in a stream of their own.

The loader's threads do both while the caller's stream computes. An image's memory is allocated in the side stream and
kept until the caller's stream has computed the crops; and nothing but this module works in the side stream, so a
decoder that ignores the order of a stream finds its memory idle. There is one such stream per GPU: torch keeps free
memory by stream, and a stream per epoch would leave the memory of each epoch behind.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch

from saga_fast.errors import SagaError
from saga_fast.kernels import planes_to_rgb
from saga_fast.loaders.decode import Pixels

Images = list[torch.Tensor | None]
Size = tuple[int, int]
"""Height and width, pixels."""


class Slot(NamedTuple):
    """Where an image (H, W, 3) uint8 lies in a block of memory."""

    begin: int
    height: int
    width: int


@dataclass(frozen=True)
class DeviceImages:
    """Images that arrive on a device.

    Attributes:
        images: (H, W, 3) uint8 each, of any strides; None for an undecodable one.
        event: recorded behind their upload or decoding; None on the CPU.
    """

    images: Images
    event: torch.cuda.Event | None = None

    def received(self) -> Images:
        """The images for the caller's stream, which waits for them on the device, not on the host.

        Call it once, and :meth:`ImageStream.keep` when the caller's stream holds all work on them.
        """
        arrived = next((image for image in self.images if image is not None), None)
        if self.event is not None and arrived is not None:
            torch.cuda.current_stream(arrived.device).wait_event(self.event)
        return self.images


@dataclass(frozen=True)
class DevicePlanes:
    """Images that arrive on a device as 4:2:0 planes.

    Attributes:
        planes: one tensor (n,) uint8, of all images.
        sizes: their heights and widths.
    """

    planes: DeviceImages
    sizes: Sequence[Size]

    def received(self) -> Images:
        """The images (H, W, 3), converted in the caller's stream. Call it once."""
        (planes,) = self.planes.received()
        assert planes is not None
        return _images_in(planes_to_rgb(planes, np.array(self.sizes).reshape(-1, 2)), slots_of(self.sizes))


def slots_of(sizes: Sequence[Size]) -> list[Slot]:
    """The slots of images (H, W, 3) that lie one after the other."""
    begins = accumulate((3 * height * width for height, width in sizes), initial=0)
    return [Slot(begin, *size) for begin, size in zip(begins, sizes, strict=False)]


def _images_in(memory: torch.Tensor, slots: Iterable[Slot | None]) -> Images:
    """The images (H, W, 3) that lie in ``memory`` (n,) uint8."""
    return [
        None if slot is None else memory.as_strided((slot.height, slot.width, 3), (3 * slot.width, 3, 1), slot.begin)
        for slot in slots
    ]


class InUse:
    """Memory that the work in a GPU's streams still reads; threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: deque[tuple[torch.cuda.Event, object]] = deque()

    def keep(self, things: object, gpu: torch.device) -> None:
        """Keep things until the work that torch's current stream holds now is done; drop those whose work is done."""
        with self._lock:
            self._things.append((torch.cuda.current_stream(gpu).record_event(), things))
            while self._things[0][0].query() and len(self._things) > 1:  # type: ignore[no-untyped-call]
                self._things.popleft()

    def drop(self) -> None:
        """Wait on the host until the work on all things is done, and drop them."""
        with self._lock:
            while self._things:
                self._things[0][0].synchronize()
                self._things.popleft()


@lru_cache
def _side_stream(device: torch.device) -> tuple[torch.cuda.Stream, InUse]:
    """The stream of a GPU, which has an index, and its images in use."""
    return torch.cuda.Stream(device), InUse()  # type: ignore[no-untyped-call]


class ImageStream:
    """Uploads and decodes in a GPU's side stream; threads share it. On the CPU images stay where they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        # Once and here, not around each call: threads would restore each other's filters. torchvision 0.29 announces
        # that its decoders will give way to TorchCodec's.
        warnings.filterwarnings("ignore", message=".*TorchCodec", category=DeprecationWarning)
        if device.type == "cuda":
            index = torch.cuda.current_device() if str(device) == "cuda" else device.index
            self._device = torch.device("cuda", index)
            self._stream, self._in_use = _side_stream(self._device)

    def wait(self) -> None:
        """Wait for what is in progress and free the images in use: the last batch's would be kept for ever.

        Memory of images that nobody receives is then idle, as the decoder needs it.
        """
        if self._stream is not None:
            self._stream.synchronize()
            self._in_use.drop()

    def keep(self, images: object) -> None:
        """Keep received images until the work that torch's current stream holds now is done."""
        if self._stream is not None:
            self._in_use.keep(images, self._device)

    def upload(self, images: Sequence[Pixels]) -> DeviceImages:
        """Upload images (H, W, 3) uint8, all of them in one copy."""
        if self._stream is None:
            return DeviceImages([torch.from_numpy(image) for image in images])
        slots = slots_of([(image.shape[0], image.shape[1]) for image in images])
        memory = self.new_memory(sum(image.size for image in images))
        for image, slot in zip(images, slots, strict=True):
            memory.numpy()[slot.begin : slot.begin + image.size] = image.reshape(-1)
        return self.upload_memory(memory, slots)

    def new_memory(self, size: int) -> torch.Tensor:
        """(size,) uint8 on the CPU to be uploaded, not initialised; page-locked for a GPU."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)

    def upload_memory(self, memory: torch.Tensor, slots: Sequence[Slot | None]) -> DeviceImages:
        """Upload ``memory`` (n,) uint8, in which these images lie; None for an undecodable one."""
        return self.run(lambda: _images_in(memory.to(self._device, non_blocking=True), slots))

    def upload_planes(self, memory: torch.Tensor, sizes: Sequence[Size]) -> DevicePlanes:
        """Upload images that lie one after the other in ``memory`` (n,) uint8 as 4:2:0 planes."""
        return DevicePlanes(self.run(lambda: [memory.to(self._device, non_blocking=True)]), sizes)

    def decode(self, files: Sequence[torch.Tensor]) -> DeviceImages:
        """Decode JPEG files (n,) uint8 by nvJPEG, planes apart; None for files that it refuses."""
        return self.run(lambda: decode_jpegs(files, self._device))

    def run(self, work: Callable[[], Images]) -> DeviceImages:
        """The images that ``work`` returns, called in the side stream."""
        if self._stream is None:
            return DeviceImages(work())
        with torch.cuda.stream(self._stream):
            images = work()
            return DeviceImages(images, self._stream.record_event())


@lru_cache
def check_nvjpeg(device: torch.device) -> None:
    """Decode a small JPEG on a GPU.

    Raises:
        SagaError: torchvision was built without nvJPEG, or nvJPEG fails.
    """
    jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8), 90, "RGB")
    file = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
    try:
        ImageStream(device).run(lambda: [*_decode([file], device)])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise SagaError(f"torchvision cannot decode JPEGs on {device} ({reason}): use decode cpu") from error


def decode_jpegs(files: Sequence[torch.Tensor], device: torch.device) -> Images:
    """The pixels (H, W, 3) uint8, on ``device``, of JPEG files (n,) uint8; None for files that are refused.

    On a GPU torchvision's batched nvJPEG decodes, whose chroma upsampling differs from libjpeg's by some levels at
    coloured edges. It writes in a stream of its own, whatever still happens to the memory in the caller's stream: call
    it in one where nothing does (:class:`ImageStream`). In the caller's own stream 3 of 400 batches came out wrong on
    an H200.

    Raises:
        RuntimeError: not a refused file, but a device that is short of memory or fails.
    """
    if not files:
        return []
    try:
        return [*_decode(list(files), device)]
    except RuntimeError as error:  # one of them, and torchvision does not say which
        _raise_of_device(error)
        images: Images = []
        for file in files:
            try:
                images.extend(_decode([file], device))
            except RuntimeError as refused:
                _raise_of_device(refused)
                images.append(None)
        return images


def _decode(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # torchvision takes seconds to import

    return [image.permute(1, 2, 0) for image in decode_jpeg(files, mode=ImageReadMode.RGB, device=device)]


def _raise_of_device(error: RuntimeError) -> None:
    """Raise an error again that says nothing about the file."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "CUDA error" in str(error):
        raise error
