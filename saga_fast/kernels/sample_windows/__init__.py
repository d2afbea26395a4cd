"""sample_windows: RandomResizedCrop inside each image's box."""

from __future__ import annotations

from typing import Any

from saga_fast.kernels._dispatch import AnyArray, Array, choose, convert_like, to_numpy
from saga_fast.kernels.philox import check_key
from saga_fast.kernels.sample_windows._numba import sample_windows_numba
from saga_fast.kernels.sample_windows.reference import sample_windows_reference

IMPLEMENTATIONS = {"reference": sample_windows_reference, "numba": sample_windows_numba}


def sample_windows(
    boxes: AnyArray,
    sizes: Array,
    *,
    seed: int,
    epoch: int,
    indices: Array,
    num_views: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0),
    impl: str | None = None,
) -> AnyArray:
    """Draw the crop windows of ``num_views`` views per image.

    Applies torchvision's RandomResizedCrop rule (10 tries, then the centre) to the pixel rectangle of the box: floor of
    the near edge, ceil of the far edge, clamped to the image, at least 1 px. An edge within 1e-3 px of a pixel border
    snaps to it, because float32 boxes cannot hold k / size exactly.

    Args:
        boxes: (B, 4) float32 [x_min, y_min, w, h], normalised, or (B, num_views, 4) for a box per view.
        sizes: (B, 2) height and width of the stored images in pixels.
        seed, epoch, indices: key of the random draws, together with the view number; indices (B,) int64.
        num_views: views per image, 1 to 256.
        scale: range of crop area / box area.
        ratio: range of crop width / crop height.
        impl: ``None`` or ``"numba"`` (CPU), or ``"reference"``.

    Returns:
        (B, num_views, 4) int32 [top, left, height, width], half-open, inside the box.

    Raises:
        ValueError: invalid shapes, an empty range, num_views, seed or epoch out of range, an image without pixels, or
            an unknown impl.
    """
    batch = len(sizes)
    if tuple(sizes.shape) != (batch, 2) or tuple(indices.shape) != (batch,):
        raise ValueError(f"sizes must be (B, 2) and indices (B,), got {tuple(sizes.shape)} and {tuple(indices.shape)}")
    if tuple(boxes.shape) not in ((batch, 4), (batch, num_views, 4)):
        raise ValueError(f"boxes must be (B, 4) or (B, num_views, 4) with B {batch}, got {tuple(boxes.shape)}")
    if not 1 <= num_views <= 256:
        raise ValueError(f"num_views must be in [1, 256], got {num_views}")
    check_key(seed, epoch)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0.0 < low <= high:
            raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {(low, high)}")
    sizes_np: Any = to_numpy(sizes, "int64")
    if batch and sizes_np.min() < 1:
        raise ValueError(f"sizes must be at least 1 pixel, got {sizes_np.min()}")
    boxes_np = to_numpy(boxes, "float32")
    if boxes_np.ndim == 2:
        boxes_np = boxes_np[:, None].repeat(num_views, 1)
    # The arrays are small. GPU tensors are sampled on the CPU too, because the loading engines need the windows there.
    sampler = choose(IMPLEMENTATIONS, impl, sizes_np)
    windows = sampler(boxes_np, sizes_np, seed, epoch, to_numpy(indices, "int64"), scale, ratio)
    return convert_like(windows, boxes)  # type: ignore[no-any-return]
