"""Images of any sizes on one device, as a table of their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

Int64 = npt.NDArray[np.int64]


class ImageTable:
    """Images (H, W, 3) uint8 of any sizes and strides, which stay where they are: :func:`crop_resize` reads them there.

    Args:
        addresses: (B,) int64, of each image's first byte.
        sizes: (B, 2) int64, height and width, pixels.
        strides: (B, 3) int64, of rows, columns and channels, bytes.
        device: where the images lie.
        owner: whatever keeps their memory; referred to as long as the table lives.

    Attributes:
        sizes: see above.
        packed: whether the channels of every pixel, and the pixels of every row, are adjacent.
    """

    def __init__(self, addresses: Int64, sizes: Int64, strides: Int64, device: torch.device, owner: object) -> None:
        self.sizes, self.device, self._owner = sizes, device, owner
        self.packed = bool((strides[:, 1] == 3).all() and (strides[:, 2] == 1).all())
        self._rows = np.concatenate([addresses[:, None], sizes, strides], 1).astype(np.int64)

    @classmethod
    def of(cls, images: torch.Tensor | Sequence[torch.Tensor]) -> ImageTable:
        """The table of a batch (B, H, W, 3) uint8, or of a sequence of images (H, W, 3) uint8 on one device.

        Raises:
            ValueError: no image, or images on several devices.
        """
        if isinstance(images, torch.Tensor):
            addresses = images.data_ptr() + images.stride(0) * np.arange(len(images))
            sizes, strides = (np.tile(x, (len(images), 1)) for x in (images.shape[1:3], images.stride()[1:]))
            return cls(addresses, sizes, strides, images.device, images)
        if not images or len({image.device for image in images}) > 1:
            raise ValueError(f"images must be on one device, and at least one, got {len(images)}")
        addresses = np.array([image.data_ptr() for image in images], np.int64)
        sizes = np.array([image.shape[:2] for image in images], np.int64)
        strides = np.array([image.stride() for image in images], np.int64)
        return cls(addresses, sizes, strides, images[0].device, list(images))

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def rows(self) -> torch.Tensor:
        """(B, 6) int64 on the device: address, height, width, and the strides of rows, columns and channels."""
        rows = torch.from_numpy(self._rows)
        rows = rows.pin_memory() if self.device.type == "cuda" else rows  # a copy from other memory waits
        return rows.to(self.device, non_blocking=True)
