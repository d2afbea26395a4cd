"""Runs Triton kernels in Triton's interpreter, in one worker process for the whole test session.

Triton reads ``TRITON_INTERPRET`` when it is imported, and the compiler tests need it unset. In the worker process,
``torch.empty`` returns NaN and the largest integers (deterministic mode), so that tests detect unwritten outputs.
"""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import torch


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def _call(pickled: bytes) -> bytes:
    module, function, arguments, keywords = pickle.loads(pickled)
    assert torch.isnan(torch.empty(3)).all(), "torch.empty does not return NaN"
    return pickle.dumps(getattr(import_module(module), function)(*arguments, **keywords))


@lru_cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare)


def interpreted(function: str, *arguments: Any, module: str = "saga_fast.kernels", **keywords: Any) -> Any:
    """Return ``module.function(*arguments, **keywords)`` as computed in the interpreter.

    Tensors are pickled, which keeps their strides.
    """
    call = pickle.dumps((module, function, arguments, keywords))
    return pickle.loads(_pool().submit(_call, call).result())
