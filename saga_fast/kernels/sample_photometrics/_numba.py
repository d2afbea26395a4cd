"""sample_photometrics on the CPU with Numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels._jit import PARALLEL_LOCK, jit, prange
from saga_fast.kernels.philox import PHOTOMETRIC, uniforms
from saga_fast.kernels.sample_photometrics.fields import (
    BLUR_RADIUS,
    BLUR_SIGMA,
    BRIGHTNESS,
    FLIP,
    GRAYSCALE,
    HUE,
    ORDER,
    PHOTOMETRIC_FIELDS,
    SOLARIZE,
    recipes_to_array,
)
from saga_fast.kernels.sample_photometrics.recipe import PhotometricRecipe


@jit()
def _sample(r: Any, seed: Any, epoch: Any, index: Any, view: Any, out: Any) -> None:
    """Draw the parameters of one view; ``r`` is a row of :func:`recipes_to_array`."""
    flip, jitter, grayscale, blur = uniforms(seed, epoch, index, view, PHOTOMETRIC, 0)
    out[FLIP] = 1.0 if flip < r[0] else 0.0
    for i in range(4):
        out[ORDER + i] = i
        out[BRIGHTNESS + i] = 1.0
    out[HUE] = 0.0
    u0, u1, u2, sigma = uniforms(seed, epoch, index, view, PHOTOMETRIC, 2)
    if jitter < r[1]:
        f0, f1, f2, f3 = uniforms(seed, epoch, index, view, PHOTOMETRIC, 1)
        out[BRIGHTNESS] = r[4] + (r[5] - r[4]) * f0
        out[BRIGHTNESS + 1] = r[6] + (r[7] - r[6]) * f1
        out[BRIGHTNESS + 2] = r[8] + (r[9] - r[8]) * f2
        out[HUE] = -r[10] + (r[10] + r[10]) * f3
        for last, u in ((3, u0), (2, u1), (1, u2)):
            chosen = np.int64(u * (last + 1))
            out[ORDER + last], out[ORDER + chosen] = out[ORDER + chosen], out[ORDER + last]
    out[GRAYSCALE] = r[11] if grayscale < r[2] else 0.0
    out[BLUR_SIGMA] = r[12] + (r[13] - r[12]) * sigma if blur < r[3] else 0.0
    out[BLUR_RADIUS] = r[14]
    solarize = uniforms(seed, epoch, index, view, PHOTOMETRIC, 3)[0]
    out[SOLARIZE] = r[16] if solarize < r[15] else 2.0


@jit(parallel=True)
def _sample_photometrics(r: Any, seed: Any, epoch: Any, indices: Any, out: Any) -> None:
    for n in prange(out.shape[0]):
        for view in range(out.shape[1]):
            _sample(r[view], seed, epoch, indices[n], view, out[n, view])


def sample_photometrics_numba(recipes: Sequence[PhotometricRecipe], seed: int, epoch: int, indices: NDArray) -> NDArray:
    """See :func:`saga_fast.kernels.sample_photometrics`."""
    out = np.empty((len(indices), len(recipes), len(PHOTOMETRIC_FIELDS)), np.float32)
    with PARALLEL_LOCK:
        _sample_photometrics(recipes_to_array(recipes), np.uint64(seed), epoch, indices, out)
    return out
