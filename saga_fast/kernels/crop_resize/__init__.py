"""crop_resize: crop windows of stored images, resized to one size with antialiasing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import torch

from saga_fast.kernels._dispatch import AnyArray, Array, NDArray, choose, on_gpu, to_numpy
from saga_fast.kernels.crop_resize._images import ImageTable
from saga_fast.kernels.crop_resize._numba import crop_resize_image, crop_resize_images, crop_resize_numba
from saga_fast.kernels.crop_resize.reference import crop_resize_reference

Images: TypeAlias = "Array | Sequence[torch.Tensor] | ImageTable"


def _lazy_triton(images: Any, windows: Array, size: int, flip: Array | None) -> Any:
    """Crop on the GPU; Triton is imported on the first call."""
    from saga_fast.kernels._triton import require_gpu
    from saga_fast.kernels.crop_resize._triton import crop_resize_triton

    if not isinstance(images, ImageTable):
        for image in images if isinstance(images, Sequence) else [images]:
            require_gpu(image)
        images = ImageTable.of(images)
    return crop_resize_triton(images, windows, size, flip)


def _one_by_one(crop: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation for batches as one that takes images of several sizes, too."""

    def any_images(images: Any, windows: Array, size: int, flip: Array | None) -> Any:
        if isinstance(images, ImageTable):
            raise ValueError("an ImageTable is read by impl 'triton' alone: pass the images themselves")
        if not isinstance(images, Sequence):
            return crop(images, windows, size, flip)
        parts = [
            crop(image[None], windows[n : n + 1], size, None if flip is None else flip[n : n + 1])
            for n, image in enumerate(images)
        ]
        return torch.cat(parts) if parts else torch.empty((*windows.shape[:2], size, size, 3), dtype=torch.uint8)

    return any_images


IMPLEMENTATIONS = {
    "reference": _one_by_one(crop_resize_reference),
    "numba": _one_by_one(crop_resize_numba),
    "triton": _lazy_triton,
}

__all__ = ["ImageTable", "check_windows", "crop_resize", "crop_resize_image", "crop_resize_images"]


def check_windows(image: Images, windows: Array) -> None:
    """Raise ``ValueError`` for images or windows that :func:`crop_resize` refuses.

    Windows on a GPU are not checked against the images: reading them would wait for the device.
    """
    batch, sizes = _sizes_of(image)
    unbatched = windows.ndim == 2 and batch == 1 and isinstance(image, torch.Tensor | np.ndarray)
    if windows.shape[-1] != 4 or not (unbatched or (windows.ndim == 3 and len(windows) == batch)):
        raise ValueError(f"windows must be (B, V, 4) with B {batch}, got {tuple(windows.shape)}")
    if "int" not in str(windows.dtype):
        raise ValueError(f"windows must be integers, got {windows.dtype}")
    if on_gpu(windows):
        return
    windows_np = to_numpy(windows).reshape(batch, windows.shape[-2], 4).astype("int64")
    top, left, height, width = np.moveaxis(windows_np, -1, 0)
    rows, columns = sizes[:, :1], sizes[:, 1:]
    outside = (top < 0) | (left < 0) | (height < 1) | (width < 1)
    outside |= (top + height > rows) | (left + width > columns)
    if outside.any():
        n, v = np.argwhere(outside)[0]
        of = f"{sizes[n, 0]} x {sizes[n, 1]}"
        raise ValueError(f"window {windows_np[n, v].tolist()} is empty or extends beyond the image of {of} pixels")


def _sizes_of(images: Images) -> tuple[int, NDArray]:
    """The number of images, and their sizes (B, 2) int64.

    Raises:
        ValueError: an image that is not (H, W, 3) uint8.
    """
    if isinstance(images, ImageTable):
        return len(images), images.sizes
    each = images if isinstance(images, Sequence) else [images]
    allowed = "(H, W, 3)" if isinstance(images, Sequence) else "(H, W, 3) or (B, H, W, 3)"
    for image in each:
        batched = image.ndim == 4 and not isinstance(images, Sequence)
        if not (image.ndim == 3 or batched) or image.shape[-1] != 3 or "uint8" not in str(image.dtype):
            raise ValueError(f"image must be uint8 {allowed}, got {image.dtype} {tuple(image.shape)}")
    sizes = np.array([image.shape[-3:-1] for image in each], np.int64).reshape(-1, 2)
    if sizes.size and sizes.min() < 1:
        raise ValueError(f"image must have pixels, got {sizes.min(0).tolist()}")
    if isinstance(images, Sequence) or images.ndim == 3:
        return len(sizes), sizes
    return len(images), np.repeat(sizes, len(images), 0)


@overload
def crop_resize(
    image: AnyArray, windows: Array, size: int, *, flip: Array | None = ..., impl: str | None = ...
) -> AnyArray: ...


@overload
def crop_resize(
    image: Sequence[torch.Tensor] | ImageTable,
    windows: Array,
    size: int,
    *,
    flip: Array | None = ...,
    impl: str | None = ...,
) -> torch.Tensor: ...


def crop_resize(image: Images, windows: Array, size: int, *, flip: Array | None = None, impl: str | None = None) -> Any:
    """Crop each window and resize it to (size, size): antialiased bilinear, within 1 level of Pillow.

    The result is that of ``image.crop(window).resize((size, size), BILINEAR)``. As in torchvision's RandomResizedCrop,
    pixels outside the window have no influence (with Pillow's ``resize(box=...)`` they have some at the window's edge).

    Args:
        image: one image (H, W, 3) uint8; a batch (B, Hmax, Wmax, 3) uint8 padded at the bottom and the right; or
            tensors (H, W, 3) uint8 of any sizes and strides on one device, which a GPU reads where they lie, also as an
            :class:`ImageTable`.
        windows: int32 [top, left, height, width]; (V, 4) or (1, V, 4) for one image, (B, V, 4) for a batch.
        size: side of the views, pixels.
        flip: views to mirror horizontally, bool (V,) or (B, V) as the windows; ``None`` mirrors none.
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) and ``"reference"`` never fall back.

    Returns:
        (V, size, size, 3) uint8 for windows (V, 4), (B, V, size, size, 3) uint8 for windows (B, V, 4).

    Raises:
        ValueError: invalid dtype or shape, or a window that is empty or extends beyond the image. Windows on a GPU are
            not checked but clipped to the image.
    """
    check_windows(image, windows)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if flip is not None and tuple(flip.shape) != tuple(windows.shape[:-1]):
        raise ValueError(f"flip must be {tuple(windows.shape[:-1])}, got {tuple(flip.shape)}")
    images = image[None] if isinstance(image, torch.Tensor | np.ndarray) and image.ndim == 3 else image
    crop = choose(IMPLEMENTATIONS, impl, _example(images))
    unbatched = windows.ndim == 2
    if unbatched:
        windows, flip = windows[None], flip if flip is None else flip[None]
    views = crop(images, windows, size, flip)
    return views[0] if unbatched else views


def _example(images: Images) -> Array:
    """An array on the device of the images."""
    if isinstance(images, ImageTable):
        return images.rows
    if isinstance(images, Sequence):
        return images[0] if images else torch.empty(0)
    return images
