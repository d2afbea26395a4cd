"""jigsaw_patches: one random crop per cell of a 3 x 3 grid, shuffled (PIRL)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saga_fast.kernels._dispatch import AnyArray, Array, choose
from saga_fast.kernels.jigsaw_patches._torch import jigsaw_patches_torch
from saga_fast.kernels.jigsaw_patches.reference import jigsaw_patches_reference
from saga_fast.kernels.philox import check_key

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "reference": jigsaw_patches_reference,
    "torch": jigsaw_patches_torch,
}


def jigsaw_patches(
    images: AnyArray, *, patch: int = 64, seed: int, epoch: int, indices: Array, impl: str | None = None
) -> AnyArray:
    """Cut each image into 3 x 3 cells, crop a random square from each and shuffle the nine squares.

    The side of a cell is S // 3; the remaining S % 3 pixels at the right and the bottom are not used. Misra and van der
    Maaten, "Self-supervised learning of pretext-invariant representations" (CVPR 2020), section 3.2, use images of
    255 px, cells of 85 px and squares of 64 px.

    Args:
        images: (B, C, S, S), any dtype and strides.
        patch: side of the squares in pixels, at most S // 3.
        seed, epoch, indices: key of the random draws; indices (B,) int64, on the images' device.
        impl: ``None`` or ``"torch"`` (any device), or ``"reference"``.

    Returns:
        (B, 9, C, patch, patch) of the images' dtype. Patch k is from cell order[k] of a permutation drawn per image.

    Raises:
        ValueError: invalid shapes, a patch larger than a cell, a seed or epoch out of range, arrays on
            different devices, or an unknown impl.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be (B, C, S, S), got {tuple(images.shape)}")
    if tuple(indices.shape) != (len(images),) or not str(indices.dtype).endswith("int64"):
        raise ValueError(f"indices must be ({len(images)},) int64, got {tuple(indices.shape)} {indices.dtype}")
    if not 1 <= patch <= images.shape[2] // 3:
        raise ValueError(f"patch must be in [1, {images.shape[2] // 3}], at most a third of the side, got {patch}")
    if isinstance(images, torch.Tensor) != isinstance(indices, torch.Tensor) or images.device != indices.device:
        kinds = [f"{type(array).__name__} on {array.device}" for array in (images, indices)]
        raise ValueError(f"images and indices must be of one type, on one device, got {kinds[0]} and {kinds[1]}")
    check_key(seed, epoch)
    patches: AnyArray = choose(IMPLEMENTATIONS, impl, images)(images, patch, seed, epoch, indices)
    return patches
