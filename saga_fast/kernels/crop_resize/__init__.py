"""crop_resize: windows of stored images to views of one size, antialiased."""

from __future__ import annotations

from typing import Any, cast

from saga_fast.kernels._dispatch import AnyArray, Array, choose, on_gpu, to_numpy
from saga_fast.kernels.crop_resize._numba import crop_resize_image, crop_resize_numba
from saga_fast.kernels.crop_resize.reference import crop_resize_reference


def _by_triton(*arguments: Any) -> Any:
    from saga_fast.kernels.crop_resize._triton import crop_resize_triton

    return crop_resize_triton(*arguments)


IMPLEMENTATIONS = {
    "reference": crop_resize_reference,
    "numba": crop_resize_numba,
    "triton": _by_triton,
}

__all__ = ["check_windows", "crop_resize", "crop_resize_image"]


def check_windows(image: Array, windows: Array) -> None:
    """Raise ``ValueError`` for what :func:`crop_resize` refuses of its image and windows.

    Where a window lies is not checked on a GPU: that would wait for it.
    """
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or "uint8" not in str(image.dtype):
        raise ValueError(f"image must be uint8 (H, W, 3) or (B, H, W, 3), got {image.dtype} {tuple(image.shape)}")
    batch = len(image) if image.ndim == 4 else 1
    one = windows.ndim == 2 and batch == 1
    if windows.shape[-1] != 4 or not (one or (windows.ndim == 3 and len(windows) == batch)):
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
        wrong = windows_np[outside.argmax()].tolist()
        raise ValueError(f"window {wrong} is empty or leaves the image of {rows} x {columns} pixels")


def crop_resize(
    image: AnyArray, windows: Array, size: int, *, flip: Array | None = None, impl: str | None = None
) -> AnyArray:
    """Crop each window and resize it to (size, size): antialiased bilinear, within 1 level of Pillow.

    The result is that of ``image.crop(window).resize((size, size), BILINEAR)``: as in torchvision's RandomResizedCrop,
    pixels outside the window have no influence. (Pillow's ``resize(box=...)`` lets them in at the window's edge.)

    Args:
        image: one image (H, W, 3) uint8, or a padded batch (B, Hmax, Wmax, 3) uint8 whose images start at the top left.
        windows: int32 [top, left, height, width]; (V, 4) for one image (also (1, V, 4)), (B, V, 4)
            for a batch.
        size: side of the views, pixels.
        flip: which views to mirror horizontally, bool (V,) or (B, V) as the windows; ``None`` for none.
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) or ``"reference"`` never falls back.

    Returns:
        (V, size, size, 3) uint8 for windows (V, 4), (B, V, size, size, 3) for windows (B, V, 4), as ``image``.

    Raises:
        ValueError: a wrong dtype or shape, or a window that is empty or leaves the image. Windows on a GPU are not
            looked at: those are cut to the image.
    """
    check_windows(image, windows)
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if flip is not None and tuple(flip.shape) != tuple(windows.shape[:-1]):
        raise ValueError(f"flip must be {tuple(windows.shape[:-1])}, got {tuple(flip.shape)}")
    images = image if image.ndim == 4 else image[None]
    crop = choose(IMPLEMENTATIONS, impl, images)
    one = windows.ndim == 2
    if one:
        windows, flip = windows[None], flip if flip is None else flip[None]
    views = crop(images, windows, size, flip)
    return cast(AnyArray, views[0] if one else views)
