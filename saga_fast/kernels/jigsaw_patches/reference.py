"""The oracle of jigsaw_patches: NumPy, one patch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, convert_like, to_numpy
from saga_fast.kernels.philox import JIGSAW, uniforms_reference


def jigsaw_patches_reference(images: Array, patch: int, seed: int, epoch: int, indices: Array) -> Any:
    """See :func:`saga_fast.kernels.jigsaw_patches`.

    Blocks 0 to 6 give 28 uniforms u: u[2 c] and u[2 c + 1] place the square in cell c, and sorting u[18:27] gives the
    order of the cells.
    """
    images_BCHW = to_numpy(images)
    cell = images_BCHW.shape[2] // 3
    room = cell - patch + 1
    patches = np.empty((len(images_BCHW), 9, images_BCHW.shape[1], patch, patch), images_BCHW.dtype)
    for b, index in enumerate(to_numpy(indices)):
        u = np.concatenate([uniforms_reference(seed, epoch, int(index), 0, JIGSAW, block) for block in range(7)])
        order = sorted(range(9), key=lambda c, u=u: u[18 + c])  # type: ignore[misc]
        for k, c in enumerate(order):
            top, left = c // 3 * cell + int(u[2 * c] * room), c % 3 * cell + int(u[2 * c + 1] * room)
            patches[b, k] = images_BCHW[b, :, top : top + patch, left : left + patch]
    return convert_like(patches, images)
