"""Number formats of the forward pass, and the step from uint8 views to the encoder's input."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from saga_fast.kernels import augment
from saga_fast.models.encoder import Encoder
from saga_fast.runtime.device import to_device

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """``torch.autocast`` to a precision; for fp32 it is disabled."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")


def normalize_views(
    views: Tensor,
    encoder: Encoder,
    device: torch.device,
    *,
    photometrics: Tensor | None = None,
    channels_last: bool = False,
    precision: Precision = "fp32",
) -> Tensor:
    """The encoder's input: views (B, V, S, S, 3) uint8 -> (B, V, 3, S, S) on ``device``, in the precision's format.

    The views are uploaded as bytes, a quarter of the floats, then augmented and normalised on the device. A colour
    conversion before the network needs float32.

    Args:
        views: before photometric augmentation.
        encoder: has the ``mean`` and ``std`` to normalise with.
        device: where the result is computed.
        photometrics: (B, V, P) float32 from :func:`saga_fast.kernels.sample_photometrics`; None: no augmentation.
        channels_last: memory format of each image.
        precision: that of the forward pass, whose autocast would convert float32 to the same numbers.
    """
    dtype = torch.float32 if encoder.converts_colours else DTYPES.get(precision, torch.float32)
    parameters = None if photometrics is None else to_device(photometrics, device)
    uploaded = views.to(device, non_blocking=True)
    return augment(uploaded, parameters, encoder.mean, encoder.std, channels_last=channels_last, dtype=dtype)
