"""crop_resize: crop windows of stored images, resized to one size with antialiasing."""

from __future__ import annotations

from typing import Any, cast

from saga_fast.kernels._dispatch import AnyArray, Array, choose, on_gpu, to_numpy
from saga_fast.kernels.crop_resize._numba import crop_resize_image, crop_resize_numba
from saga_fast.kernels.crop_resize.reference import crop_resize_reference


def _lazy_triton(*arguments: Any) -> Any:
    """Import Triton on the first call."""
    from saga_fast.kernels.crop_resize._triton import crop_resize_triton

    return crop_resize_triton(*arguments)


IMPLEMENTATIONS = {
    "reference": crop_resize_reference,
    "numba": crop_resize_numba,
    "triton": _lazy_triton,
}

__all__ = ["check_windows", "crop_resize", "crop_resize_image"]


def check_windows(image: Array, windows: Array) -> None:
    """Raise ``ValueError`` for an image or windows that :func:`crop_resize` refuses.

    Windows on a GPU are not checked against the image: reading them would wait for the device.
    """
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or "uint8" not in str(image.dtype):
        raise ValueError(f"image must be uint8 (H, W, 3) or (B, H, W, 3), got {image.dtype} {tuple(image.shape)}")
    batch = len(image) if image.ndim == 4 else 1
    unbatched = windows.ndim == 2 and batch == 1
    if windows.shape[-1] != 4 or not (unbatched or (windows.ndim == 3 and len(windows) == batch)):
        raise ValueError(f"windows must be (B, V, 4) with B {batch}, got {tuple(windows.shape)}")
    if "int" not in str(windows.dtype):
        raise ValueError(f"windows must be integers, got {windows.dtype}")
    if on_gpu(windows):
        return
    windows_np = to_numpy(windows).reshape(-1, 4)
    top, left, height, width = windows_np.astype("int64").T
    outside = (top < 0) | (left < 0) | (height < 1) | (width < 1)
    rows, columns = image.shape[-3:-1]
    outside |= (top + height > rows) | (left + width > columns)
    if outside.any():
        window = windows_np[outside.argmax()].tolist()
        raise ValueError(f"window {window} is empty or extends beyond the image of {rows} x {columns} pixels")


def crop_resize(
    image: AnyArray, windows: Array, size: int, *, flip: Array | None = None, impl: str | None = None
) -> AnyArray:
    """Crop each window and resize it to (size, size): antialiased bilinear, within 1 level of Pillow.

    The result is that of ``image.crop(window).resize((size, size), BILINEAR)``. As in torchvision's RandomResizedCrop,
    pixels outside the window have no influence (with Pillow's ``resize(box=...)`` they have some at the window's edge).

    Args:
        image: one image (H, W, 3) uint8, or a batch (B, Hmax, Wmax, 3) uint8 padded at the bottom and the right.
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
    images = image if image.ndim == 4 else image[None]
    crop = choose(IMPLEMENTATIONS, impl, images)
    unbatched = windows.ndim == 2
    if unbatched:
        windows, flip = windows[None], flip if flip is None else flip[None]
    views = crop(images, windows, size, flip)
    return cast(AnyArray, views[0] if unbatched else views)
