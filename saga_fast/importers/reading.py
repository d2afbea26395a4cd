"""Reading checkpoint files without running pickled code."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from saga_fast.errors import SagaError
from saga_fast.runtime.files import read_file
from saga_fast.runtime.tensors import load_tensors

MAX_BYTES = 2**37
_make_scalar = np.float64(0.0).__reduce__()[0]
ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")},
    # NumPy 2 writes the first name, NumPy 1 the second.
    (_make_scalar, "numpy._core.multiarray.scalar"),
    (_make_scalar, "numpy.core.multiarray.scalar"),
]
"""Types that a file may contain besides torch's default types: command-line options and NumPy numbers."""


def read_foreign(path: Path) -> dict[str, Any]:
    """The dictionary in a .pt, .pth, .tar, .ckpt, .t7 or .safetensors file, tensors on the CPU.

    Raises:
        SagaError: no such file, a damaged file, no dictionary, or a file whose reading would run pickled code.
    """
    if not path.is_file():
        raise SagaError(f"no such checkpoint: {path}")
    try:
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise SagaError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        try:
            return dict(load(data))
        except SafetensorError as error:
            raise SagaError(f"cannot read the checkpoint {path}: {_first_line(error)}") from error
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the format of old torch versions
            content = load_tensors(data)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        if match is None:
            raise SagaError(f"cannot read the checkpoint {path}: not a file of torch, or damaged") from error
        raise SagaError(
            f"pickled {match[1]} in {path}, and reading that would run code from the file: in the code of the project"
            " that wrote the file, load it with torch.load(..., weights_only=False), put the object's state_dict() in"
            " its place or remove the object, and torch.save it again"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # for damaged files torch's reader raises IndexError, RuntimeError and more
        raise SagaError(f"cannot read the checkpoint {path}: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise SagaError(f"{path} is not a checkpoint: expected a dictionary, got {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
