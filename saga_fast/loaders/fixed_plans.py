"""Plans without draws, for evaluation: an image's centre, and its attention box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saga_fast.kernels.sample_windows.reference import SNAP
from saga_fast.loaders.box_table import BoxTable
from saga_fast.loaders.plan import Int64, Plan


@dataclass(frozen=True, kw_only=True)
class CentrePlan:
    """The centre square of every image as one view: resize the shorter side, then crop, in one step.

    ``fraction`` is the crop's side over the resized image's shorter side: torchvision's Resize(256) and CenterCrop(224)
    are 224 / 256 = 0.875. Here the window is cut from the stored image, to whole pixels, and resized once.

    Raises:
        ValueError: ``fraction`` outside (0, 1].
    """

    size: int
    fraction: float = 0.875

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")

    @property
    def num_views(self) -> int:
        """See :class:`~saga_fast.loaders.plan.Plan`."""
        return 1

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """See :class:`~saga_fast.loaders.plan.Plan`."""
        return ((self.size, 1),)

    def windows(self, epoch: int, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:  # noqa: ARG002
        """The centre: (B, 1, 4)."""
        side = np.maximum(np.rint(self.fraction * sizes.min(1)), 1.0).astype(np.int32)[:, None]
        return np.concatenate([(sizes.astype(np.int32) - side) // 2, side, side], 1)[:, None]


@dataclass(frozen=True, kw_only=True)
class BoxPlan:
    """Every image's attention box as one view, squashed to size x size, after another plan's views if there is one.

    Args:
        size: side of the views, pixels.
        table: the boxes.
        beside: whose views come first, of the same size.

    Raises:
        ValueError: ``beside`` has views of another size.
    """

    size: int
    table: BoxTable
    beside: Plan | None = None

    def __post_init__(self) -> None:
        if self.beside is not None and self.beside.groups != ((self.size, self.beside.num_views),):
            raise ValueError(f"both plans' views must be of one size, got {self.beside.groups} beside {self.size}")

    @property
    def num_views(self) -> int:
        """See :class:`~saga_fast.loaders.plan.Plan`."""
        return 1 + (self.beside.num_views if self.beside is not None else 0)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """See :class:`~saga_fast.loaders.plan.Plan`."""
        return ((self.size, self.num_views),)

    def windows(self, epoch: int, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """The boxes' pixel rectangles, last: (B, V, 4)."""
        boxes = box_windows(self.table.boxes[indices], sizes)[:, None]
        return boxes if self.beside is None else np.concatenate([self.beside.windows(epoch, indices, sizes), boxes], 1)


def box_windows(boxes: npt.NDArray[np.float32], sizes: Int64) -> npt.NDArray[np.int32]:
    """Pixel rectangles of boxes, by the rule of :func:`saga_fast.kernels.sample_windows`.

    Args:
        boxes: (B, 4) [x_min, y_min, w, h], normalised.
        sizes: (B, 2) height and width of the images.

    Returns:
        (B, 4) int32 [top, left, height, width].
    """
    extent, exact = sizes[:, ::-1], boxes.astype(np.float64)
    near = np.clip(np.floor(exact[:, :2] * extent + SNAP), 0, extent - 1)
    far = np.minimum(np.maximum(np.ceil((exact[:, :2] + exact[:, 2:]) * extent - SNAP), near + 1), extent)
    return np.concatenate([near[:, ::-1], (far - near)[:, ::-1]], 1).astype(np.int32)
