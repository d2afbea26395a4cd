"""Train and eval mode of modules, and their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

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


def place_model(model: Module, device: torch.device, *, channels_last: bool) -> Module:
    """The model, moved to a device, its weights in the memory format of its input."""
    model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model
