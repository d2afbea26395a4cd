"""augment: photometric augmentation and normalisation of uint8 views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from saga_fast.kernels._dispatch import AnyArray, Array, choose, on_gpu, to_numpy
from saga_fast.kernels.augment._numba import augment_numba
from saga_fast.kernels.augment.reference import augment_reference
from saga_fast.kernels.sample_photometrics.fields import PHOTOMETRIC_FIELDS, check_blur


def _lazy_triton(*arguments: Any) -> Any:
    """Import Triton on the first call."""
    from saga_fast.kernels.augment._triton import augment_triton

    return augment_triton(*arguments)


IMPLEMENTATIONS = {
    "reference": augment_reference,
    "numba": augment_numba,
    "triton": _lazy_triton,
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _check_parameters(
    photometrics: Array | None, shape_BV: tuple[int, int], side: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raise ``ValueError`` for photometrics, mean or std that :func:`augment` refuses.

    The blur radius is not checked on a GPU: reading it would wait for the device.
    """
    expected = (*shape_BV, len(PHOTOMETRIC_FIELDS))
    if photometrics is not None and tuple(photometrics.shape) != expected:
        raise ValueError(f"photometrics must be {expected}, got {tuple(photometrics.shape)}")
    if photometrics is not None and not on_gpu(photometrics):
        check_blur(to_numpy(photometrics), side)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0.0:
        raise ValueError(f"mean and std must be three numbers each, std > 0, got {list(mean)} and {list(std)}")


def _check_output_format(array: Array, channels_last: bool, dtype: torch.dtype) -> None:
    """Raise ``ValueError`` for an output format that the input ``array`` does not support."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype}")
    if not isinstance(array, torch.Tensor):
        if channels_last:
            raise ValueError("channels_last=True needs tensors, got a NumPy array; pass torch.from_numpy(array)")
        if dtype != torch.float32:
            raise ValueError(f"dtype must be torch.float32 for a NumPy array, got {dtype}")


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
    """Flip, jitter, convert to greyscale, blur, solarize and normalise views.

    As torchvision.transforms.v2.functional on floats, within 1/255 before the normalisation. The order of the four
    jitter steps and the blur's sigma are set per view. Contrast pivots on the view's mean grey value, hue is a true HSV
    shift, and the blur is Gaussian with reflected borders.

    Args:
        views: (B, V, S, S, 3) uint8.
        photometrics: (B, V, P) float32 from :func:`saga_fast.kernels.sample_photometrics`, or ``None`` to only
            normalise.
        mean, std: per channel, for values in [0, 1].
        channels_last: return a result whose ``flatten(0, 1)`` is channels_last (tensors only).
        dtype: of the result: float32, float16 or bfloat16 (float32 for NumPy arrays). The arithmetic is float32.
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) and ``"reference"`` never fall back.

    Returns:
        (B, V, 3, S, S) of ``dtype``.

    Raises:
        ValueError: invalid dtype or shape, a blur radius >= S (not checked on a GPU, where it is cut to
            S - 1), or a std that is not positive.
    """
    if views.ndim != 5 or views.shape[-1] != 3 or views.shape[2] != views.shape[3] or "uint8" not in str(views.dtype):
        raise ValueError(f"views must be uint8 (B, V, S, S, 3), got {views.dtype} {tuple(views.shape)}")
    _check_parameters(photometrics, (views.shape[0], views.shape[1]), views.shape[2], mean, std)
    _check_output_format(views, channels_last, dtype)
    implementation = choose(IMPLEMENTATIONS, impl, views)
    augmented: AnyArray = implementation(views, photometrics, mean, std, channels_last, dtype)
    return augmented
