"""D^att for other frameworks: a map-style data set of images cropped to their boxes, for a torch DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from saga_fast.errors import SagaError
from saga_fast.loaders.box_table import BoxTable
from saga_fast.loaders.boxes import pixel_rectangles, widen_boxes
from saga_fast.loaders.decode import DecodeError, read_pixels
from saga_fast.loaders.image_folder import ImageFolder
from saga_fast.loaders.plan import Views, check_views

AnyImage = TypeVar("AnyImage", Image.Image, torch.Tensor)


class AttentionCrop:
    """Crops an image to its attention box: a transform in torchvision's manner, of the image and its box.

    For the next transform, such as RandomResizedCrop, the box is the whole image: "D^att is fed into the next step as
    the new input" (SAGA, section 2.3).

    Args:
        min_side: boxes are widened about their centre to at least this fraction of the image's side.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(self, *, min_side: float = 0.0) -> None:
        if not 0.0 <= min_side <= 1.0:
            raise ValueError(f"min_side must be in [0, 1], got {min_side}")
        self.min_side = min_side

    def __call__(self, image: AnyImage, box: npt.NDArray[np.float32] | Sequence[float]) -> AnyImage:
        """Crop.

        Args:
            image: a PIL image, or a tensor (..., H, W).
            box: [x_min, y_min, w, h], normalised, a row of :attr:`BoxTable.boxes`. The pixel rectangle is floor of the
                near edge, ceil of the far edge, at least 1 px.

        Returns:
            The same kind of image; of a tensor, a view.
        """
        boxes = np.asarray(box, np.float32).reshape(1, 4)
        width, height = image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
        if self.min_side:
            boxes = widen_boxes(boxes, self.min_side)
        top, left, rows, columns = pixel_rectangles(boxes, np.array([[height, width]]))[0].tolist()
        if isinstance(image, Image.Image):
            return image.crop((left, top, left + columns, top + rows))
        return image[..., top : top + rows, left : left + columns]

    def __repr__(self) -> str:
        return f"AttentionCrop(min_side={self.min_side:g})"


class AttentionCropFolder(Dataset[tuple[Any, int]]):
    """D^att as a data set: item i is ``(transform(image i cropped to its box), label)``.

    In torchvision's ImageFolder order, from the files that the engines read. The boxes are in memory that worker
    processes share, so :meth:`set_table` also affects persistent workers.

    Args:
        root: a folder of images, see :class:`ImageFolder`.
        table: the box table of that folder, or its file.
        transform: from a PIL image to anything; for several views, to a list or tuple of them (lightly's transforms).
        views: ``att``: every view is of the box. ``union``: the box or the whole image, drawn from torch's generator
            with probability ``share``. ``mixed``: view 0 is of the whole image and the others of the box; for a
            transform of several views, which runs on both.
        share: see ``union``.
        crop: how the box is cut out.
        target_transform: of the label.
        classes: see :class:`ImageFolder`.

    Attributes:
        source: the images: paths, labels, classes.

    Raises:
        SagaError: no such folder or table, a table of another data set, or too little shared memory for the boxes.
        ValueError: ``views`` or ``share`` out of range, or ``paste``, which takes a batch.
    """

    def __init__(
        self,
        root: Path | str,
        table: BoxTable | Path | str,
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        views: Views = "att",
        share: float = 0.5,
        crop: AttentionCrop | None = None,
        target_transform: Callable[[int], Any] | None = None,
        classes: Path | str | None = None,
    ) -> None:
        check_views(views, share)
        if views == "paste":
            raise ValueError("views paste needs the images of a batch: saga-fast train has it, this data set has not")
        self.source = ImageFolder(root, classes=classes)
        self.transform, self.target_transform = transform, target_transform
        self._views, self._share, self._crop = views, share, AttentionCrop() if crop is None else crop
        self._boxes = _shared_boxes(len(self.source))
        self.set_table(table)

    def set_table(self, table: BoxTable | Path | str) -> None:
        """Use another table from now on: call it between epochs, after a renewal.

        Raises:
            SagaError: no such table, or one of another data set.
        """
        table = table if isinstance(table, BoxTable) else BoxTable.open(table)
        table.check(self.source.fingerprint, len(self.source))
        self._boxes.copy_(torch.from_numpy(table.boxes))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Read, decode, crop and transform one image.

        Raises:
            IndexError: no such image.
            SagaError: the file is gone or cannot be decoded.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a data set of {len(self)} images")
        index %= len(self)
        image, label = self._read(index), int(self.source.labels[index])
        sample = self._sample(image, self._boxes[index].numpy())
        return sample, label if self.target_transform is None else self.target_transform(label)

    def _read(self, index: int) -> Image.Image:
        try:
            return Image.fromarray(read_pixels(self.source, index))
        except DecodeError as error:
            path = self.source.root / self.source.paths[index]
            raise SagaError(f"cannot read {path}: {error}") from error

    def _sample(self, image: Image.Image, box: npt.NDArray[np.float32]) -> Any:
        if self._views == "union" and float(torch.rand(())) >= self._share:
            return self._transformed(image)
        sample = self._transformed(self._crop(image, box))
        if self._views != "mixed":
            return sample
        whole = self._transformed(image)
        if not isinstance(sample, list | tuple) or len(sample) < 2 or len(whole) != len(sample):
            raise ValueError(
                f"views mixed needs a transform that returns a list of at least two views, got {type(sample).__name__}"
            )
        return type(sample)((whole[0], *sample[1:]))

    def _transformed(self, image: Image.Image) -> Any:
        return image if self.transform is None else self.transform(image)


def _shared_boxes(count: int) -> torch.Tensor:
    """Memory for boxes (count, 4) float32 that processes share.

    Raises:
        SagaError: there is too little.
    """
    boxes = torch.empty(count, 4)
    try:
        return boxes.share_memory_()  # type: ignore[no-untyped-call,no-any-return]
    except RuntimeError as error:
        raise SagaError(
            f"the boxes of {count} images need {boxes.nbytes / 1e6:.1f} MB of shared memory: enlarge /dev/shm, in a"
            f" container with --shm-size, which a DataLoader's workers also need ({str(error).splitlines()[0]})"
        ) from error
