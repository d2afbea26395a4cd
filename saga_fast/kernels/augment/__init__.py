"""augment: uint8 views to normalised float views, photometric augmentation included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from saga_fast.kernels._dispatch import Array, choose
from saga_fast.kernels.augment._numba import augment_numba
from saga_fast.kernels.augment.reference import augment_reference
from saga_fast.kernels.sample_photometrics import PHOTOMETRIC_FIELDS

IMPLEMENTATIONS = {"reference": augment_reference, "numba": augment_numba}
AnyArray = TypeVar("AnyArray", bound=Array)


def augment(
    views: AnyArray,
    photometrics: AnyArray | None,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = False,
    impl: str | None = None,
) -> AnyArray:
    """Flip, jitter, greyscale, blur, solarize and normalise, as torchvision.transforms.v2.functional on floats.

    The jitter's four steps run in each view's own order; contrast pivots on the view's mean grey; hue is a true HSV
    shift; the blur is Gaussian with reflected borders and each view's own sigma. Within 1/255 of torchvision before
    the normalisation.

    Args:
        views: (B, V, S, S, 3) uint8.
        photometrics: (B, V, P) float32 as :func:`saga_fast.kernels.sample_photometrics` draws them, or ``None`` to
            normalise only.
        mean, std: per channel, for values in [0, 1].
        channels_last: lay the result out so that ``flatten(0, 1)`` is channels_last (tensors only).
        impl: ``None`` or ``"numba"`` (CPU), or ``"reference"``.

    Returns:
        (B, V, 3, S, S) float32.

    Raises:
        ValueError: a wrong dtype or shape, a blur radius that reaches beyond the reflected border (radius >= S), or a
            std that is not positive.
    """
    if views.ndim != 5 or views.shape[-1] != 3 or views.shape[2] != views.shape[3] or "uint8" not in str(views.dtype):
        raise ValueError(f"views must be uint8 (B, V, S, S, 3), got {views.dtype} {tuple(views.shape)}")
    expected = (*views.shape[:2], len(PHOTOMETRIC_FIELDS))
    if photometrics is not None and tuple(photometrics.shape) != expected:
        raise ValueError(f"photometrics must be {expected}, got {tuple(photometrics.shape)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0.0:
        raise ValueError(f"mean and std must be three numbers, std positive, got {list(mean)} and {list(std)}")
    if channels_last and not isinstance(views, torch.Tensor):
        raise ValueError("channels_last is a memory format of tensors, got a NumPy array")
    augmented: AnyArray = choose(IMPLEMENTATIONS, impl, views)(views, photometrics, mean, std, channels_last)
    return augmented
