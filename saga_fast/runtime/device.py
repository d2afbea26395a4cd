"""The device that a model runs on, and copies to it."""

from __future__ import annotations

import torch

from saga_fast.errors import SagaError
from saga_fast.runtime.distributed import launched, local_rank


def choose_device(name: str) -> torch.device:
    """The torch device of ``auto``, ``cpu`` or ``cuda``; ``auto`` is a GPU if there is one. Each process takes one GPU.

    Raises:
        SagaError: ``cuda`` on a machine without a GPU, or more processes than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SagaError("device cuda: torch sees no GPU; use device auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not launched():
        return torch.device("cuda")
    if local_rank() >= torch.cuda.device_count():
        raise SagaError(
            f"process {local_rank()} of this machine has no GPU, there are {torch.cuda.device_count()}: start as many"
            " processes with --nproc-per-node, or set device cpu"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; a GPU copies it from page-locked memory, so that the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
