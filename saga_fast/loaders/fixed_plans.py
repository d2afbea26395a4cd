"""Plans without draws, for evaluation: an image's centre, and its attention box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saga_fast.loaders.box_table import BoxTable
from saga_fast.loaders.boxes import pixel_rectangles
from saga_fast.loaders.plan import Int64, Plan


@dataclass(frozen=True, kw_only=True)
class CentrePlan:
    """The centre square of each image as one view: resize the shorter side, then crop, in one step.

    ``fraction`` is the crop's side over the resized image's shorter side: torchvision's Resize(256) and CenterCrop(224)
    are 224 / 256 = 0.875. Here the window is cut from the stored image, to whole pixels, and resized once.

    Raises:
        ValueError: ``fraction`` outside (0, 1].
    """

    size: int
    fraction: float = 0.875
    table: None = None

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
    """Each image's attention box as one view, squashed to size x size, after the views of another plan if given.

    Args:
        size: side of the views, pixels.
        table: the boxes.
        first: a plan without a table, whose views of the same size come first.

    Raises:
        ValueError: ``first`` has a table, which nothing would check against the data set, or views of another size.
    """

    size: int
    table: BoxTable
    first: Plan | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.first.table is not None:
            raise ValueError(f"first must be a plan without a table, got a {type(self.first).__name__} with one")
        if self.first is not None and self.first.groups != ((self.size, self.first.num_views),):
            raise ValueError(f"both plans' views must be of one size, got {self.first.groups} and {self.size}")

    @property
    def num_views(self) -> int:
        """See :class:`~saga_fast.loaders.plan.Plan`."""
        return 1 + (self.first.num_views if self.first is not None else 0)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """See :class:`~saga_fast.loaders.plan.Plan`."""
        return ((self.size, self.num_views),)

    def windows(self, epoch: int, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """The boxes' pixel rectangles, last: (B, V, 4)."""
        boxes = pixel_rectangles(self.table.boxes[indices], sizes)[:, None]
        return boxes if self.first is None else np.concatenate([self.first.windows(epoch, indices, sizes), boxes], 1)
