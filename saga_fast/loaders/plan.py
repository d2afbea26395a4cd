"""Plans: the window of an image that becomes a view, as a function of (seed, epoch, index, view)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from saga_fast.kernels import sample_windows
from saga_fast.kernels.philox import SHARE, draw
from saga_fast.loaders.box_table import BoxTable
from saga_fast.loaders.boxes import WHOLE, widen_boxes
from saga_fast.loaders.centred import centre_in_boxes
from saga_fast.loaders.source import Source

Int64 = npt.NDArray[np.int64]
Views = Literal["att", "union", "mixed", "paste"]
Crop = Literal["inside", "centred"]


class Plan(Protocol):
    """The interface of a plan; the windows of any images can be computed when they are needed."""

    @property
    def size(self) -> int:
        """Side of the views, pixels."""

    @property
    def num_views(self) -> int:
        """Number of main views per image, those of that size."""

    @property
    def table(self) -> BoxTable | None:
        """The box table that the windows are made with, None without one."""

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(side, number of views per image) of the main views, then of any further views."""

    def windows(self, epoch: int, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """The windows of images: indices (B,), sizes (B, 2) -> (B, V, 4) int32 [top, left, height, width]."""


@dataclass(frozen=True, kw_only=True)
class WholePlan:
    """Each image as one view, squashed to size x size: for the attention pass and evaluation."""

    size: int
    num_views: int = 1
    table: None = None

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """See :class:`Plan`."""
        return ((self.size, self.num_views),)

    def windows(self, epoch: int, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:  # noqa: ARG002
        """The whole image: (B, 1, 4)."""
        windows = np.zeros((len(sizes), self.num_views, 4), np.int32)
        windows[:, :, 2:] = sizes[:, None]
        return windows


@dataclass(frozen=True, kw_only=True)
class MoreViews:
    """Further views, with another size or range of crops than the main views (PIRL's jigsaw)."""

    size: int
    """Side, pixels."""
    count: int = 1
    """Views per image."""
    scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        _check_size_and_range(self.size, {"scale": self.scale})
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


@dataclass(frozen=True, kw_only=True)
class CropPlan:
    """Random resized crops, inside the attention boxes or centred in them where there are any.

    Args:
        size: side of the main views, pixels.
        seed: key of all draws.
        num_views: main views per image.
        scale: range of a crop's area over its box's area; over the image's where crops are ``centred``.
        ratio: range of a crop's width over its height.
        table: D^att, or None to crop from whole images.
        views: which views are cropped from the box (DESIGN 1): ``att`` all of them; ``mixed`` all but the first
            ``whole_views``, which see the whole image; ``union`` all views of an image or none, drawn per epoch with
            probability ``share``; ``paste`` as ``mixed``: a training step pastes view 1 onto another image's view 0, so
            the plan has one view more than the method takes (:mod:`saga_fast.train.paste`).
        whole_views: see ``mixed``.
        share: see ``union``; for ``paste`` the probability of pasting.
        crop: ``inside``: crops of the box; ``centred``: crops as large as those of whole images, whose centres lie in
            the box (:mod:`saga_fast.loaders.centred`).
        min_side: boxes are widened about their centre to at least this fraction of the image's side.
        more: further views, numbered on from the main ones.

    Raises:
        ValueError: a value out of its range, or ``mixed`` or ``paste`` views of a table where there is only one.
    """

    size: int
    seed: int
    num_views: int = 2
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)
    table: BoxTable | None = None
    views: Views = "att"
    whole_views: int = 1
    share: float = 0.5
    crop: Crop = "inside"
    min_side: float = 0.0
    more: tuple[MoreViews, ...] = ()

    def __post_init__(self) -> None:
        _check_size_and_range(self.size, {"scale": self.scale, "ratio": self.ratio})
        if not 1 <= self.num_views <= 256:
            raise ValueError(f"num_views must be in 1 to 256, got {self.num_views}")
        check_views(self.views, self.share)
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop must be 'inside' or 'centred', got {self.crop!r}")
        if not 0.0 <= self.min_side <= 1.0:
            raise ValueError(f"min_side must be in [0, 1], got {self.min_side}")
        if not 1 <= self.whole_views <= self.num_views:
            raise ValueError(f"whole_views must be in 1 to num_views {self.num_views}, got {self.whole_views}")
        has_box = self.num_views > (self.whole_views if self.views == "mixed" else 1)
        has_box |= bool(self.more) and self.views == "mixed"
        if self.table is not None and self.views in ("mixed", "paste") and not has_box:
            raise ValueError(f"views {self.views!r} needs two views, and there is one, which would never see its box")

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """See :class:`Plan`."""
        return ((self.size, self.num_views), *((more.size, more.count) for more in self.more))

    def boxes(self, epoch: int, indices: Int64) -> npt.NDArray[np.float32]:
        """The box of each view, to crop from or to centre in: (B, V, 4) float32, normalised."""
        boxes = np.tile(WHOLE, (len(indices), len(view_sides(self)), 1))
        if self.table is None:
            return boxes
        attention = self.table.boxes[indices]
        if self.min_side:
            attention = widen_boxes(attention, self.min_side)
        if self.views == "att":
            boxes[:] = attention[:, None]
        elif self.views in ("mixed", "paste"):
            boxes[:, 1:] = attention[:, None]
            pasted = int(self.views == "paste")  # view 1 is pasted onto view 0
            boxes[:, 1 + pasted : self.whole_views + pasted] = WHOLE
        else:
            chosen = draw(self.seed, epoch, indices, purpose=SHARE)[:, 0] < self.share
            boxes[chosen] = attention[chosen, None]
        return boxes

    def windows(self, epoch: int, indices: Int64, sizes: Int64) -> npt.NDArray[np.int32]:
        """See :meth:`Plan.windows`."""
        boxes, parts, last = self.boxes(epoch, indices), [], 0
        centred = self.crop == "centred" and self.table is not None
        cropped = np.broadcast_to(WHOLE, boxes.shape) if centred else boxes
        for count, scale in ((self.num_views, self.scale), *((more.count, more.scale) for more in self.more)):
            first, last = last, last + count
            # Draws are keyed by the view's number, so the views before these are drawn too, and left out.
            drawn = sample_windows(
                cropped[:, :last],
                sizes,
                seed=self.seed,
                epoch=epoch,
                indices=indices,
                num_views=last,
                scale=scale,
                ratio=self.ratio,
            )
            parts.append(drawn[:, first:])
        windows = np.concatenate(parts, 1) if len(parts) > 1 else parts[0]
        if not centred:
            return windows
        return centre_in_boxes(windows, boxes, sizes, seed=self.seed, epoch=epoch, indices=indices)


def _check_size_and_range(size: int, ranges: Mapping[str, tuple[float, float]]) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    for name, (low, high) in ranges.items():
        if not 0.0 < low <= high:
            raise ValueError(f"{name} must be an increasing pair of positive numbers, got {(low, high)}")


def view_sides(plan: Plan) -> Int64:
    """The side of each view of an image, pixels: (V,) int64."""
    return np.array([side for side, count in plan.groups for _ in range(count)], np.int64)


def view_bytes(plan: Plan) -> int:
    """The number of bytes of all views of an image."""
    return 3 * sum(count * side * side for side, count in plan.groups)


def check_views(views: str, share: float) -> None:
    """Check how crops of boxes and of whole images are mixed.

    Raises:
        ValueError: unknown ``views``, or ``share`` outside [0, 1].
    """
    if views not in get_args(Views):
        raise ValueError(f"views must be one of {', '.join(get_args(Views))}, got {views!r}")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in [0, 1], got {share}")


def check_plan(plan: Plan, source: Source) -> None:
    """Check that a plan's box table belongs to a data set.

    Raises:
        SagaError: see :meth:`BoxTable.check`.
    """
    if plan.table is not None:
        plan.table.check(source.fingerprint, len(source))
