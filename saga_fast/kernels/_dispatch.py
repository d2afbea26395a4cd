"""Choosing an implementation, and moving arrays in and out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

Array: TypeAlias = "np.ndarray[Any, Any] | torch.Tensor"
NDArray: TypeAlias = "np.ndarray[Any, Any]"
AnyArray = TypeVar("AnyArray", "np.ndarray[Any, Any]", torch.Tensor)


def choose(implementations: Mapping[str, Callable[..., Any]], impl: str | None, array: Array) -> Callable[..., Any]:
    """The implementation called ``impl``, or the one for the device that ``array`` lies on.

    Raises:
        ValueError: ``impl`` is not one of the op's implementations, or the op has none for the array's device.
            An explicit choice never falls back.
    """
    gpu = on_gpu(array)
    if impl is None:
        # Where torch's own operations suffice, they serve every device.
        impl = "torch" if "torch" in implementations else "triton" if gpu else "numba"
        if impl not in implementations:
            raise ValueError(
                f"no implementation for arrays on a GPU yet, have {sorted(implementations)}; move them to the CPU"
            )
    # What Triton refuses it says itself: only its own files know whether its interpreter runs kernels on the CPU.
    usable = sorted(name for name in implementations if not (gpu and name == "numba"))
    if impl not in usable:
        raise ValueError(f"impl must be one of {usable} for arrays on the {'GPU' if gpu else 'CPU'}, got {impl!r}")
    return implementations[impl]


def on_gpu(array: Array) -> bool:
    """Whether reading ``array`` on the host would wait for a GPU."""
    return isinstance(array, torch.Tensor) and array.is_cuda


def to_numpy(array: Array, dtype: Any = None) -> NDArray:
    """A NumPy view where one exists (strides kept), else a copy; bfloat16, which NumPy lacks, becomes float32."""
    if isinstance(array, torch.Tensor):
        tensor = array.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        array = tensor.cpu().numpy()
    return np.asarray(array, dtype=dtype)


def like(result: NDArray, array: Array) -> Any:
    """``result`` as the caller's kind of array: a tensor on the same device for a tensor, NumPy for NumPy."""
    return torch.from_numpy(result).to(array.device) if isinstance(array, torch.Tensor) else result
