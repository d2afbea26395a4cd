"""The oracle of sample_photometrics, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels.philox import PHOTOMETRIC, uniforms_reference
from saga_fast.kernels.sample_photometrics.fields import PHOTOMETRIC_FIELDS
from saga_fast.kernels.sample_photometrics.recipe import PhotometricRecipe


def shuffle(draws: NDArray) -> list[int]:
    """Fisher-Yates shuffle of the four jitter steps with three uniforms."""
    order = [0, 1, 2, 3]
    for last, u in zip((3, 2, 1), draws, strict=True):
        chosen = int(u * (last + 1))
        order[last], order[chosen] = order[chosen], order[last]
    return order


def between(low: float, high: float, u: float) -> float:
    """Return the point at fraction u from low to high."""
    return low + (high - low) * u


def sample_photometrics_reference(
    recipes: Sequence[PhotometricRecipe], seed: int, epoch: int, indices: NDArray
) -> NDArray:
    """See :func:`saga_fast.kernels.sample_photometrics`."""
    out = np.empty((len(indices), len(recipes), len(PHOTOMETRIC_FIELDS)), np.float32)
    for n, view in np.ndindex(len(indices), len(recipes)):
        recipe = recipes[view]
        event_u, factor_u, order_u, solarize_u = (
            uniforms_reference(seed, epoch, int(indices[n]), view, PHOTOMETRIC, block) for block in range(4)
        )
        values: dict[str, float] = dict.fromkeys(PHOTOMETRIC_FIELDS, 0.0)
        values |= {f"order_{i}": float(i) for i in range(4)}
        values |= {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "solarize": 2.0}
        values["flip"] = float(event_u[0] < recipe.flip)
        if event_u[1] < recipe.jitter:
            values |= {f"order_{i}": float(step) for i, step in enumerate(shuffle(order_u[:3]))}
            for name, u in zip(("brightness", "contrast", "saturation"), factor_u, strict=False):
                values[name] = between(max(0.0, 1.0 - getattr(recipe, name)), 1.0 + getattr(recipe, name), u)
            values["hue"] = between(-recipe.hue, recipe.hue, factor_u[3])
        if event_u[2] < recipe.grayscale:
            values["grayscale"] = 2.0 if recipe.grayscale_first else 1.0
        if event_u[3] < recipe.blur:
            values["blur_sigma"] = between(*recipe.blur_sigma, order_u[3])
        values["blur_radius"] = recipe.blur_kernel // 2
        if solarize_u[0] < recipe.solarize:
            values["solarize"] = recipe.solarize_threshold
        out[n, view] = [values[name] for name in PHOTOMETRIC_FIELDS]
    return out
