"""Batches on their way to a GPU: uploaded in a stream of their own while the batch before is being computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from saga_fast.loaders import Batch


def uploaded(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with their main views on ``device``, one ahead where that is a GPU.

    The copy of the next batch, from pinned memory, and the kernels of this one run at the same time. On the CPU nothing
    is read ahead.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        if batch.views.is_cuda:  # cropped there
            yield batch
            continue
        with torch.cuda.stream(stream):
            views = batch.views.to(device, non_blocking=True)
        here = coming
        coming = replace(batch, views=views), stream.record_event()
        if here is not None:
            yield _arrived(*here)
    if coming is not None:
        yield _arrived(*coming)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    """The batch, for the current stream: which waits for the copy, and whose memory is not reused before it is done."""
    current = torch.cuda.current_stream(batch.views.device)
    current.wait_event(event)
    batch.views.record_stream(current)
    return batch
