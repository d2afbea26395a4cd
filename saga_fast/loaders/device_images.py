"""Images on their way to the device that crops them: uploaded, or decoded there, in a stream of their own.

The loader's threads do both while the caller's stream computes. An image's memory is allocated in the side stream and
recorded in the caller's, so it is not reused before the crops have been computed; and nothing but this module works in
the side stream, so a decoder that ignores the order of a stream finds its memory idle.
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
from saga_fast.loaders.decode import Pixels

Images = list[torch.Tensor | None]


@dataclass(frozen=True)
class DeviceImages:
    """Images that arrive on a device.

    Attributes:
        images: (H, W, 3) uint8 each, of any strides; None for an undecodable one.
        event: passed when they are there; None on the CPU.
    """

    images: Images
    event: torch.cuda.Event | None = None

    def received(self) -> Images:
        """The images for the caller's stream, which waits for them on the device, not on the host."""
        arrived = [image for image in self.images if image is not None]
        if self.event is not None and arrived:
            stream = torch.cuda.current_stream(arrived[0].device)
            stream.wait_event(self.event)
            for image in arrived:
                image.record_stream(stream)
        return self.images


class ImageStream:
    """The side stream of one iteration of a loader; threads may share it. On the CPU images stay where they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

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
        return self.upload_memory(memory, [None if image is None else image.shape[:2] for image in images])

    def new_memory(self, size: int) -> torch.Tensor:
        """(size,) uint8 on the CPU to be uploaded, not initialised; page-locked for a GPU."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._stream is not None)

    def upload_memory(self, memory: torch.Tensor, sizes: Sequence[tuple[int, ...] | None]) -> DeviceImages:
        """Upload images that lie one after the other in ``memory`` (n,) uint8: their heights and widths, or None."""

        def upload() -> Images:
            uploaded, begin = memory.to(self._device, non_blocking=True), 0
            images: Images = []
            for size in sizes:
                if size is None:
                    images.append(None)
                    continue
                end = begin + 3 * size[0] * size[1]
                images.append(uploaded[begin:end].view(size[0], size[1], 3))
                begin = end
            return images

        return self._run(upload)

    def decode(self, files: Sequence[torch.Tensor]) -> DeviceImages:
        """Decode JPEG files (n,) uint8 by nvJPEG, planes apart; None for files that it refuses."""
        return self._run(lambda: decode_jpegs(files, self._device))

    def _run(self, work: Callable[[], Images]) -> DeviceImages:
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
    (image,) = decode_jpegs([torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)], device)
    if image is None:
        raise SagaError("this torchvision cannot decode on the GPU (nvJPEG): use decode cpu")


def decode_jpegs(files: Sequence[torch.Tensor], device: torch.device) -> Images:
    """The pixels (H, W, 3) uint8, on ``device``, of JPEG files (n,) uint8; None for files that are refused.

    On a GPU torchvision's batched nvJPEG decodes, whose chroma upsampling differs from libjpeg's by some levels at
    coloured edges. It writes in a stream of its own, whatever still happens to the memory in the caller's stream: call
    it in one where nothing does (:class:`ImageStream`).
    """
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
        images: Images = []
        for file in files:
            try:
                images.extend(decode([file]))
            except RuntimeError:
                images.append(None)
        return images
