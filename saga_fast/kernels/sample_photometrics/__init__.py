"""sample_photometrics: the random parameters of flip, colour jitter, greyscale, blur and solarize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saga_fast.kernels._dispatch import AnyArray, choose, convert_like, to_numpy
from saga_fast.kernels.philox import check_key
from saga_fast.kernels.sample_photometrics._numba import sample_photometrics_numba
from saga_fast.kernels.sample_photometrics.fields import PHOTOMETRIC_FIELDS
from saga_fast.kernels.sample_photometrics.recipe import PhotometricRecipe
from saga_fast.kernels.sample_photometrics.reference import sample_photometrics_reference

IMPLEMENTATIONS = {"reference": sample_photometrics_reference, "numba": sample_photometrics_numba}

__all__ = ["PHOTOMETRIC_FIELDS", "PhotometricRecipe", "sample_photometrics"]


def sample_photometrics(
    recipe: PhotometricRecipe | Sequence[PhotometricRecipe],
    seed: int,
    epoch: int,
    indices: AnyArray,
    num_views: int,
    *,
    impl: str | None = None,
) -> AnyArray:
    """Draw the photometric parameters of ``num_views`` views per image.

    Args:
        recipe: probabilities and ranges, of all views or of each one. What a view draws depends on its own recipe only.
        seed, epoch, indices: key of the random draws, together with the view number; indices (B,) int64.
        num_views: views per image, 1 to 256.
        impl: ``None`` or ``"numba"`` (CPU), or ``"reference"``.

    Returns:
        (B, num_views, P) float32 on the device of ``indices``; the P columns are ``PHOTOMETRIC_FIELDS``.

    Raises:
        ValueError: indices that are not (B,), num_views, seed or epoch out of range, another number of recipes than
            num_views, or an unknown impl.
    """
    if indices.ndim != 1:
        raise ValueError(f"indices must be (B,), got {tuple(indices.shape)}")
    if not 1 <= num_views <= 256:
        raise ValueError(f"num_views must be in [1, 256], got {num_views}")
    recipes = [recipe] * num_views if isinstance(recipe, PhotometricRecipe) else list(recipe)
    if len(recipes) != num_views:
        raise ValueError(f"there must be a recipe per view, got {len(recipes)} recipes for {num_views} views")
    check_key(seed, epoch)
    indices_np: Any = to_numpy(indices, "int64")
    # Only 13 numbers per view: for GPU tensors they are drawn on the CPU and uploaded.
    sampler = choose(IMPLEMENTATIONS, impl, indices_np)
    return convert_like(sampler(recipes, seed, epoch, indices_np), indices)  # type: ignore[no-any-return]
