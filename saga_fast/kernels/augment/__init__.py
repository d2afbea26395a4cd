"""augment: uint8 views to normalised float views, photometric augmentation included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saga_fast.kernels._dispatch import AnyArray, Array, choose, on_gpu, to_numpy
from saga_fast.kernels.augment._numba import augment_numba
from saga_fast.kernels.augment.reference import augment_reference
from saga_fast.kernels.sample_photometrics.fields import PHOTOMETRIC_FIELDS, check_blur


def _by_triton(*arguments: Any) -> Any:
    from saga_fast.kernels.augment._triton import augment_triton

    return augment_triton(*arguments)


IMPLEMENTATIONS = {
    "reference": augment_reference,
    "numba": augment_numba,
    "triton": _by_triton,
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_finish(
    photometrics: Array | None, num_views: tuple[int, int], side: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raise ``ValueError`` for what :func:`augment` refuses besides its views, of which there are (B, V) = num_views.

    The blur's radius is not checked on a GPU: that would wait for it.
    """
    expected = (*num_views, len(PHOTOMETRIC_FIELDS))
    if photometrics is not None and tuple(photometrics.shape) != expected:
        raise ValueError(f"photometrics must be {expected}, got {tuple(photometrics.shape)}")
    if photometrics is not None and not on_gpu(photometrics):
        check_blur(to_numpy(photometrics), side)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0.0:
        raise ValueError(f"mean and std must be three numbers, std positive, got {list(mean)} and {list(std)}")


def check_format(array: Array, channels_last: bool, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` for a format that results for ``array`` cannot have."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype}")
    if not isinstance(array, torch.Tensor):
        if channels_last:
            raise ValueError("channels_last is a memory format of tensors, got a NumPy array")
        if dtype != torch.float32:
            raise ValueError(f"for a NumPy array dtype must be torch.float32, got {dtype}")


def augment(
    views: AnyArray,
    photometrics: Array | None,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
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
        dtype: of the result: float32, float16 or bfloat16 (float32 for NumPy arrays). The arithmetic is float32.
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) or ``"reference"`` never falls back.

    Returns:
        (B, V, 3, S, S) of ``dtype``.

    Raises:
        ValueError: a wrong dtype or shape, a blur radius that reaches beyond the reflected border (radius >= S; not
            looked at on a GPU, where the taps beyond count for an edge pixel), or a std that is not positive.
    """
    if views.ndim != 5 or views.shape[-1] != 3 or views.shape[2] != views.shape[3] or "uint8" not in str(views.dtype):
        raise ValueError(f"views must be uint8 (B, V, S, S, 3), got {views.dtype} {tuple(views.shape)}")
    check_finish(photometrics, (views.shape[0], views.shape[1]), views.shape[2], mean, std)
    check_format(views, channels_last, dtype)
    implementation = choose(IMPLEMENTATIONS, impl, views)
    augmented: AnyArray = implementation(views, photometrics, mean, std, channels_last, dtype)
    return augmented
