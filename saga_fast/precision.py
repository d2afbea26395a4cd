"""Number formats of the forward pass, and the step from uint8 views to the encoder's input."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from saga_fast.encoder import Encoder
from saga_fast.kernels import augment

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """``torch.autocast`` to the precision; does nothing for fp32."""
    return torch.autocast(device.type, DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")


def normalized(
    views: Tensor,
    encoder: Encoder,
    device: torch.device,
    *,
    photometrics: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """Views (B, V, S, S, 3) uint8 -> (B, V, 3, S, S) float32 on ``device``, augmented and normalised there.

    Bytes are uploaded, a quarter of the floats; a GPU augments with the Triton kernels.
    """
    parameters = None if photometrics is None else photometrics.to(device, non_blocking=True)
    uploaded = views.to(device, non_blocking=True)
    return augment(uploaded, parameters, encoder.mean, encoder.std, channels_last=channels_last)
