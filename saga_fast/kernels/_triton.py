"""What the Triton files share: the typed decorator and the options of every launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from saga_fast.kernels._dispatch import Array

# Triton is not typed. A kernel's arguments are annotated ``tl.tensor``, pointers and scalars included: the compiler
# resolves the names in annotations and knows no others.
jit: Callable[[Callable[..., Any]], Any] = triton.jit

INTERPRETED: bool = triton.knobs.runtime.interpret
"""TRITON_INTERPRET was 1 when Triton was imported: its kernels run on the CPU, on tensors in main memory."""

# Multiply-adds may fuse; said aloud because Triton 3.9 warns that its default will change.
FUSION: dict[str, Any] = {"enable_fp_fusion": True}


def refuse_cpu(array: Array) -> None:
    """Raise ``ValueError`` for an array that Triton cannot reach."""
    if not isinstance(array, torch.Tensor) or (array.device.type == "cpu" and not INTERPRETED):
        raise ValueError("impl must be one of ['numba', 'reference'] for arrays on the CPU, got 'triton'")


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; off it (Triton's interpreter, compiling ahead of time) those of an H100."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def upload(array: Array, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``array`` as a contiguous tensor beside ``like``, without waiting for the GPU."""
    return torch.as_tensor(array).to(like.device, dtype, non_blocking=True).contiguous()


def device_of(tensor: torch.Tensor) -> torch.cuda.device:
    """Context: launch on the GPU that ``tensor`` lies on, whichever is current. Does nothing for other tensors."""
    return torch.cuda.device(tensor.device.index if tensor.is_cuda else -1)
