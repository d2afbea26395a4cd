"""Selection of an implementation, and conversion between tensors and NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

Array: TypeAlias = "np.ndarray[Any, Any] | torch.Tensor"
NDArray: TypeAlias = "np.ndarray[Any, Any]"
AnyArray = TypeVar("AnyArray", "np.ndarray[Any, Any]", torch.Tensor)


def choose(implementations: Mapping[str, Callable[..., Any]], impl: str | None, array: Array) -> Callable[..., Any]:
    """Return the implementation named ``impl``, or the default for the device of ``array``.

    An explicit ``impl`` never falls back.

    Raises:
        ValueError: ``impl`` is not one of the op's implementations, or the op has none for the device of ``array``.
    """
    gpu = on_gpu(array)
    if impl is None:
        # A torch implementation runs on every device.
        impl = "torch" if "torch" in implementations else "triton" if gpu else "numba"
        if impl not in implementations:
            raise ValueError(
                f"no implementation for arrays on a GPU, only {sorted(implementations)}; move the arrays to the CPU"
            )
    # Triton refuses CPU arrays in require_gpu: only _triton.py knows whether its interpreter runs kernels on the CPU.
    available = sorted(name for name in implementations if not (gpu and name == "numba"))
    if impl not in available:
        raise ValueError(f"impl must be one of {available} for arrays on the {'GPU' if gpu else 'CPU'}, got {impl!r}")
    return implementations[impl]


def on_gpu(array: Array) -> bool:
    """Whether ``array`` is a CUDA tensor: reading it on the host would wait for the GPU."""
    return isinstance(array, torch.Tensor) and array.is_cuda


def to_numpy(array: Array, dtype: Any = None) -> NDArray:
    """Convert to NumPy: a view with the same strides if possible, otherwise a copy.

    bfloat16, which NumPy lacks, becomes float32.
    """
    if isinstance(array, torch.Tensor):
        tensor = array.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        array = tensor.cpu().numpy()
    return np.asarray(array, dtype=dtype)


def convert_like(result: NDArray, array: Array) -> Any:
    """Convert ``result`` to the type of ``array``: a tensor on the same device, or a NumPy array."""
    return torch.from_numpy(result).to(array.device) if isinstance(array, torch.Tensor) else result
