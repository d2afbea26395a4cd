"""crop_resize: windows of stored images to views of one size, antialiased."""

from __future__ import annotations

from typing import Any, TypeVar

from saga_fast.kernels._dispatch import Array, choose, like, to_numpy
from saga_fast.kernels.crop_resize._numba import crop_resize_image, crop_resize_numba
from saga_fast.kernels.crop_resize.reference import crop_resize_reference

IMPLEMENTATIONS = {"reference": crop_resize_reference, "numba": crop_resize_numba}
AnyArray = TypeVar("AnyArray", bound=Array)

__all__ = ["crop_resize", "crop_resize_image"]


def crop_resize(image: AnyArray, windows: AnyArray, size: int, *, impl: str | None = None) -> AnyArray:
    """Crop each window and resize it to (size, size): antialiased bilinear, within 1 level of Pillow.

    The result is that of ``image.crop(window).resize((size, size), BILINEAR)``: as in torchvision's RandomResizedCrop,
    pixels outside the window have no influence. (Pillow's ``resize(box=...)`` lets them in at the window's edge.)

    Args:
        image: one image (H, W, 3) uint8, or a padded batch (B, Hmax, Wmax, 3) uint8 whose images start at the top left.
        windows: int32 [top, left, height, width]; (V, 4) for one image (also (1, V, 4)), (B, V, 4)
            for a batch.
        size: side of the views, pixels.
        impl: ``None`` or ``"numba"`` (CPU), or ``"reference"``.

    Returns:
        (V, size, size, 3) uint8 for windows (V, 4), (B, V, size, size, 3) for windows (B, V, 4).

    Raises:
        ValueError: a wrong dtype or shape, or a window that is empty or leaves the image.
    """
    images = image[None] if image.ndim == 3 else image
    windows_np: Any = to_numpy(windows)
    if windows_np.dtype.kind not in "iu":
        raise ValueError(f"windows must be integers, got {windows_np.dtype}")
    batched = windows_np if windows_np.ndim == 3 else windows_np[None]
    if images.ndim != 4 or images.shape[-1] != 3 or "uint8" not in str(images.dtype):
        raise ValueError(f"image must be uint8 (H, W, 3) or (B, H, W, 3), got {image.dtype} {tuple(image.shape)}")
    if batched.ndim != 3 or batched.shape[-1] != 4 or len(batched) != len(images):
        raise ValueError(f"windows must be (B, V, 4) with B {len(images)}, got {tuple(windows.shape)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    top, left, height, width = batched.reshape(-1, 4).astype("int64").T
    outside = (top < 0) | (left < 0) | (height < 1) | (width < 1)
    outside |= (top + height > images.shape[1]) | (left + width > images.shape[2])
    if outside.any():
        wrong = batched.reshape(-1, 4)[outside.argmax()].tolist()
        raise ValueError(f"window {wrong} is empty or leaves the image of {images.shape[1]} x {images.shape[2]} pixels")
    views = choose(IMPLEMENTATIONS, impl, images)(to_numpy(images), batched.astype("int32"), size)
    return like(views if windows_np.ndim == 3 else views[0], image)  # type: ignore[no-any-return]
