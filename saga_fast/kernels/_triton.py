"""Helpers that all Triton files share: the typed decorator, launch options, device checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from saga_fast.kernels._dispatch import Array

# Triton has no type annotations. Kernel arguments are annotated ``tl.tensor``, pointers and scalars included, because
# the compiler resolves the names in annotations and knows no others.
jit: Callable[[Callable[..., Any]], Any] = triton.jit

INTERPRETED: bool = triton.knobs.runtime.interpret
"""True if TRITON_INTERPRET was 1 when Triton was imported: kernels then run on the CPU, on CPU tensors."""

# Multiply-adds may be fused. Explicit, because Triton 3.9 warns that its default will change.
FUSION: dict[str, Any] = {"enable_fp_fusion": True}


def require_gpu(array: Array) -> None:
    """Raise ``ValueError`` for an array outside GPU memory, unless the interpreter is on."""
    if not isinstance(array, torch.Tensor) or (array.device.type == "cpu" and not INTERPRETED):
        raise ValueError("impl must be one of ['numba', 'reference'] for arrays on the CPU, got 'triton'")


def multiprocessors(device: torch.device) -> int:
    """Number of streaming multiprocessors of ``device``; 132 (an H100) if it is not a GPU.

    Triton's interpreter and ahead-of-time compilation run without a GPU.
    """
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def upload(array: Array, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy ``array`` to the device of ``like`` as a contiguous tensor, without waiting for the GPU."""
    tensor = torch.as_tensor(array).to(dtype).contiguous()
    if like.is_cuda and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy from other memory waits
    return tensor.to(like.device, non_blocking=True)


def device_of(tensor: torch.Tensor) -> torch.cuda.device:
    """Context manager that makes the GPU of ``tensor`` the current one. No effect for CPU tensors."""
    return torch.cuda.device(tensor.device.index if tensor.is_cuda else -1)
