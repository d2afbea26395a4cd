"""saga-fast: contrastive learning whose crops come from the network's own attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saga_fast.errors import SagaError
from saga_fast.version import __version__

if TYPE_CHECKING:
    from saga_fast.methods import Method

__all__ = ["SagaError", "__version__", "load_model"]


def load_model(path: Path | str) -> Method:
    """See :func:`saga_fast.checkpoint.load_model`, which is imported when it is called: kernels need no timm."""
    from saga_fast.checkpoint import load_model as load

    return load(path)
