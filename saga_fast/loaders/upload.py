"""Batches on their way to a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from saga_fast.loaders.batch import Batch


def upload_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their views on ``device``; for a GPU the next batch is uploaded during the current one's work.

    The upload, from page-locked memory, runs in its own stream beside the kernels of the current batch. On the CPU no
    batch is read ahead.
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
            uploaded = batch.to(device)
        here = coming
        coming = uploaded, stream.record_event()
        if here is not None:
            yield _received(*here)
    if coming is not None:
        yield _received(*coming)


def _received(batch: Batch, event: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which waits for the copy; the memory is not reused before its work is done."""
    current = torch.cuda.current_stream(batch.views.device)
    current.wait_event(event)
    for views in (batch.views, *batch.more):
        views.record_stream(current)
    return batch
