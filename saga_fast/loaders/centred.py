"""ContrastiveCrop's rule: windows keep their size, and their centres are drawn inside the attention box.

Peng et al., "Crafting better contrastive views for Siamese representation learning", CVPR 2022, section 3.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from saga_fast.kernels.philox import CENTRE, draw
from saga_fast.loaders.boxes import WHOLE

NDArray = npt.NDArray[Any]

ALPHA = 0.6
"""Of Beta(alpha, alpha): below 1 it is U-shaped, and the views of a pair lie apart. The paper's value."""


def _quantiles(alpha: float, cells: int = 1024) -> tuple[NDArray, NDArray]:
    """The lower half of Beta(alpha, alpha): probabilities, and t = x**alpha there.

    In t the density (1 - t**(1/alpha))**(alpha - 1) has no pole at 0, and the trapezoid rule is exact to 1e-7.
    """
    t = np.linspace(0.0, 0.5**alpha, cells + 1)
    density = (1.0 - t ** (1.0 / alpha)) ** (alpha - 1.0)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return 0.5 * mass / mass[-1], t


_PROBABILITIES, _T = _quantiles(ALPHA)


def beta_quantile(u: NDArray) -> NDArray:
    """x with I_x(ALPHA, ALPHA) = u, to 1e-6; u in [0, 1], any shape."""
    lower = np.interp(np.minimum(u, 1.0 - u), _PROBABILITIES, _T) ** (1.0 / ALPHA)
    return np.where(u <= 0.5, lower, 1.0 - lower)


def centre_in_boxes(
    windows: npt.NDArray[np.int32],
    boxes: npt.NDArray[np.float32],
    sizes: NDArray,
    *,
    seed: int,
    epoch: int,
    indices: NDArray,
) -> npt.NDArray[np.int32]:
    """The windows, moved so that their centres lie in the boxes.

    Along each axis a window is placed between its places with its centre on the box's near and on its far edge, both
    first cut to the image, at a fraction drawn from Beta(:data:`ALPHA`, :data:`ALPHA`). Where the box is the whole
    image, the window does not move: the image has no box, or the view is cropped without one.

    Args:
        windows: (B, V, 4) [top, left, height, width] in the images.
        boxes: (B, V, 4) [x_min, y_min, w, h], normalised.
        sizes: (B, 2) height and width of the images, pixels.
        seed, epoch, indices: key the draws together with the view's number; indices (B,) int64.

    Returns:
        (B, V, 4) int32 windows of the same sizes.
    """
    draws = [draw(seed, epoch, indices, purpose=CENTRE, view=view)[:, :2] for view in range(windows.shape[1])]
    fraction = beta_quantile(np.stack(draws, 1))
    sides = windows[..., 2:].astype(np.float64)
    sizes_B12 = sizes[:, None].astype(np.float64)
    near, far = boxes[..., 1::-1], boxes[..., 1::-1] + boxes[..., :1:-1]  # y, x as the windows have them
    room = sizes_B12 - sides
    first, last = (np.clip(edge * sizes_B12 - 0.5 * sides, 0.0, room) for edge in (near, far))
    placed = windows.copy()
    placed[..., :2] = np.rint(first + (last - first) * fraction)
    return np.where((boxes == WHOLE).all(-1, keepdims=True), windows, placed)
