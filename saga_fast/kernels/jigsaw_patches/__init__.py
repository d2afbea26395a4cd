"""jigsaw_patches: nine random crops of a 3 x 3 grid, shuffled (PIRL)."""

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
    """Cut every image into 3 x 3 cells, take a random square of each and shuffle the nine.

    A cell's side is S // 3; what S leaves over lies at the right and at the bottom and is not used. Misra and van der
    Maaten, "Self-supervised learning of pretext-invariant representations" (CVPR 2020), section 3.2: images of 255 px,
    cells of 85, squares of 64.

    Args:
        images: (B, C, S, S), any dtype and strides.
        patch: side of the squares, pixels, at most S // 3.
        seed, epoch, indices: key the draws; indices (B,) int64, on the images' device.
        impl: ``None`` or ``"torch"`` (any device), or ``"reference"``.

    Returns:
        (B, 9, C, patch, patch) of the images' dtype: patch k is from cell order[k], a permutation drawn per image.

    Raises:
        ValueError: shapes that do not fit, a patch larger than a cell, a seed or epoch out of range, arrays on
            different devices, or an unknown impl.
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be (B, C, S, S), got {tuple(images.shape)}")
    if tuple(indices.shape) != (len(images),) or not str(indices.dtype).endswith("int64"):
        raise ValueError(f"indices must be ({len(images)},) int64, got {tuple(indices.shape)} {indices.dtype}")
    if not 1 <= patch <= images.shape[2] // 3:
        raise ValueError(f"patch must be in 1 to {images.shape[2] // 3}, a third of the image's side, got {patch}")
    if isinstance(images, torch.Tensor) != isinstance(indices, torch.Tensor) or images.device != indices.device:
        raise ValueError(f"images and indices must be on one device, got {images.device} and {indices.device}")
    check_key(seed, epoch)
    patches: AnyArray = choose(IMPLEMENTATIONS, impl, images)(images, patch, seed, epoch, indices)
    return patches
