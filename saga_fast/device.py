"""Where a model runs."""

from __future__ import annotations

import torch

from saga_fast.errors import SagaError


def choose_device(name: str) -> torch.device:
    """``auto``: the GPU where there is one, else the CPU.

    Raises:
        SagaError: ``cuda`` on a machine without a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SagaError("device cuda: torch sees no GPU; use device auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
