"""facebookresearch/moco, v1 and v2: full checkpoints, and the released ones that hold the query encoder only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft, resnet_and_head
from saga_fast.importers.networks import Projector
from saga_fast.importers.tensors import Piece, Tensors, begins


def matches(content: Mapping[str, Any]) -> bool:
    """``state_dict`` with ``encoder_q.``, with or without ``module.`` before it."""
    return begins(content.get("state_dict"), "encoder_q.")


def read(draft: Draft) -> None:
    """``encoder_q``, ``encoder_k``, ``queue`` (dim, K) and ``queue_ptr``; the projector is ``fc``."""
    read_state(draft, draft.tensors("state_dict"))


def read_state(draft: Draft, tensors: Tensors) -> None:
    """The same of any state dict of that form."""
    projector = resnet_and_head(draft, tensors, "encoder_q.", "fc")
    queue = pointer = None
    if tensors.has("encoder_k."):
        resnet_and_head(draft, tensors, "encoder_k.", "fc", keys=True)
        queue, pointer = draft.memory(tensors, "queue"), draft.memory(tensors, "queue_ptr")
    else:
        draft.copy_to_keys()
    place_queue(draft, projector, queue, pointer, transposed=True)
    draft.method = moco_values(draft, projector)
    tensors.finish("MoCo")


def moco_values(draft: Draft, projector: Projector, **others: Any) -> dict[str, Any]:
    """The config of MoCo (linear projector) or MoCo v2 (any other)."""
    queue = draft.pieces.get("queue")
    size = {"queue_size": queue.tensor.shape[0]} if queue and queue.tensor.ndim else {}
    name = "moco" if projector.linear else "mocov2"
    return {"name": name, **projector.values(projector.widths[0]), **size, **others}


def place_queue(
    draft: Draft, projector: Projector, queue: Piece | None, pointer: Piece | None, *, transposed: bool
) -> None:
    """The queue (K, dim), or (dim, K) where ``transposed``, and its pointer, each fresh where the file has none."""
    dim = projector.widths[-1]
    if queue is None:
        draft.fresh["queue"] = "queue: random"
        return
    if queue.tensor.ndim != 2 or queue.tensor.shape[0 if transposed else 1] != dim:
        form = f"({dim}, K)" if transposed else f"(K, {dim})"
        raise draft.fail(f"{queue.origin} has shape {tuple(queue.tensor.shape)}, expected {form}")
    rows = queue.tensor.T.contiguous() if transposed else queue.tensor
    draft.put("queue", Piece(rows, queue.origin))
    if pointer is None:
        draft.fresh["queue_pointer"] = "queue pointer: 0"
        return
    if pointer.tensor.numel() != 1 or not 0 <= int(pointer.tensor) < len(rows):
        raise draft.fail(f"{pointer.origin} must be a place in the queue of {len(rows)}, got {pointer.tensor.tolist()}")
    draft.put("queue_pointer", Piece(pointer.tensor.reshape(()), pointer.origin))
