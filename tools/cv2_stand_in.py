"""A module ``cv2`` for a machine without OpenCV: what importing FFCV and pytorch-grad-cam needs, and ``resize``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

COLORMAP_JET = 2


def resize(image: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Bilinear with half-pixel centres, as OpenCV's default: (H, W) -> (size[1], size[0])."""
    values = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    resized: npt.NDArray[np.float32] = torch.nn.functional.interpolate(values, (size[1], size[0]), mode="bilinear")[
        0, 0
    ].numpy()
    return resized
