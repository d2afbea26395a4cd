"""Train and eval mode of modules, their running statistics, and their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within the block ``module`` is in eval mode; its own mode is restored at the end, also after an error."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def keeping_statistics(*modules: nn.Module) -> Iterator[None]:
    """Within the block batch norms in train mode write their running statistics to tensors that are then dropped.

    They only write them: in train mode they normalise by the batch.
    """
    norms = [m for module in modules for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, torch.empty_like(buffer))
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


def place_model(model: Module, device: torch.device, *, channels_last: bool) -> Module:
    """The model, moved to a device, its weights in the memory format of its input."""
    model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model
