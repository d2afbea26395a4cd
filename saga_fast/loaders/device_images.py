"""Images on their way to the device that crops them: uploaded, or decoded there, in a stream of their own.

The loader's threads do both while the caller's stream computes. An image's memory is allocated in the side stream and
recorded in the caller's, so it is not reused before the crops have been computed; and nothing but this module works in
the side stream, so a decoder that ignores the order of a stream finds its memory idle. There is one such stream per
GPU: torch keeps free memory by stream, and a stream per epoch would leave the memory of each epoch behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
import torch

from saga_fast.errors import SagaError
from saga_fast.kernels import planes_to_rgb
from saga_fast.loaders.decode import Pixels

Images = list[torch.Tensor | None]
Size = tuple[int, int]
"""Height and width, pixels."""


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
        """The images for the caller's stream, which waits for them on the device, not on the host. Call it once."""
        arrived = [image for image in self.images if image is not None]
        if self.event is not None and arrived:
            stream = torch.cuda.current_stream(arrived[0].device)
            stream.wait_event(self.event)
            for image in arrived:
                image.record_stream(stream)
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
        return _images_in(planes_to_rgb(planes, np.array(self.sizes).reshape(-1, 2)), self.sizes)


def _images_in(memory: torch.Tensor, sizes: Sequence[Size | None]) -> Images:
    """The images (H, W, 3) that lie one after the other in ``memory`` (n,) uint8."""
    begin = 0
    images: Images = []
    for size in sizes:
        if size is None:
            images.append(None)
            continue
        end = begin + 3 * size[0] * size[1]
        images.append(memory[begin:end].view(*size, 3))
        begin = end
    return images


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU, which has an index."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


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
            self._stream = _side_stream(self._device)

    def wait(self) -> None:
        """Wait for what is in progress: memory of images that nobody receives is then idle, as the decoder needs it."""
        if self._stream is not None:
            self._stream.synchronize()

    def upload(self, images: Sequence[Pixels | None]) -> DeviceImages:
        """Upload images (H, W, 3) uint8, all of them in one copy."""
        if self._stream is None:
            return DeviceImages([None if image is None else torch.from_numpy(image) for image in images])
        memory = self.new_memory(sum(image.size for image in images if image is not None))
        values, begin = memory.numpy(), 0
        for image in images:
            if image is not None:
                values[begin : begin + image.size] = image.reshape(-1)
                begin += image.size
        sizes = [None if image is None else (image.shape[0], image.shape[1]) for image in images]
        return self.upload_memory(memory, sizes)

    def new_memory(self, size: int) -> torch.Tensor:
        """(size,) uint8 on the CPU to be uploaded, not initialised; page-locked for a GPU."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)

    def upload_memory(self, memory: torch.Tensor, sizes: Sequence[Size | None]) -> DeviceImages:
        """Upload images that lie one after the other in ``memory`` (n,) uint8: their heights and widths, or None."""
        return self.run(lambda: _images_in(memory.to(self._device, non_blocking=True), sizes))

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
