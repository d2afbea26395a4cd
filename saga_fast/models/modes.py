"""Train and eval mode of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within the block ``module`` is in eval mode; its own mode is restored at the end, also after an error."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
