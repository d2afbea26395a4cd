"""Errors that say of memory, and not of what was asked for, that there is too little."""

from __future__ import annotations

import re

_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|std::bad_alloc|failed to map segment"
    r"|could not create a primitive",  # oneDNN's
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a MemoryError, or a RuntimeError or ImportError by which torch or its libraries mean that."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | ImportError) and _MEMORY.search(str(error)) is not None
