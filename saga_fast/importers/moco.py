"""facebookresearch/moco, v1 and v2: full checkpoints, and published query encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft, place_resnet_and_projector
from saga_fast.importers.networks import Projector
from saga_fast.importers.tensors import NamedTensor, Tensors, has_prefix


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``state_dict`` has names that start with ``encoder_q.``."""
    return has_prefix(content.get("state_dict"), "encoder_q.")


def read(draft: Draft) -> None:
    """Read ``encoder_q``, ``encoder_k``, ``queue`` (dim, K) and ``queue_ptr``; the projector is ``fc``."""
    read_state(draft, draft.state_dict("state_dict"))


def read_state(draft: Draft, tensors: Tensors) -> None:
    """Read a state dict with the names of facebookresearch/moco."""
    projector = place_resnet_and_projector(draft, tensors, "encoder_q.", "fc")
    queue = pointer = None
    if tensors.has_prefix("encoder_k."):
        place_resnet_and_projector(draft, tensors, "encoder_k.", "fc", keys=True)
        queue, pointer = draft.take_memory(tensors, "queue"), draft.take_memory(tensors, "queue_ptr")
    else:
        draft.copy_encoder("moco")
    place_queue(draft, projector, queue, pointer, transposed=True)
    draft.method = moco_config(draft, projector)
    tensors.finish("MoCo")


def moco_config(draft: Draft, projector: Projector, **fields: Any) -> dict[str, Any]:
    """The config of MoCo (linear projector) or MoCo v2 (MLP); ``fields`` are added."""
    queue = draft.tensors.get("queue")
    size = {"queue_size": queue.tensor.shape[0]} if queue and queue.tensor.ndim else {}
    name = "moco" if projector.is_linear else "mocov2"
    return {"name": name, **projector.config(projector.widths[0]), **size, **fields}


def place_queue(
    draft: Draft, projector: Projector, queue: NamedTensor | None, pointer: NamedTensor | None, *, transposed: bool
) -> None:
    """Put the queue and its pointer.

    Args:
        draft: the model.
        projector: the projector, whose output has the queue's dimension.
        queue: (K, dim), or (dim, K) if ``transposed``; None: it starts fresh.
        pointer: one number; None: it starts fresh.
        transposed: see ``queue``.
    """
    dim = projector.widths[-1]
    if queue is None:
        draft.fresh["queue"] = "queue: random"
        return
    if queue.tensor.ndim != 2 or queue.tensor.shape[0 if transposed else 1] != dim:
        expected = f"({dim}, K)" if transposed else f"(K, {dim})"
        raise draft.error(f"{queue.origin} has shape {tuple(queue.tensor.shape)}, expected {expected}")
    rows = queue.tensor.T.contiguous() if transposed else queue.tensor
    draft.tensors["queue"] = NamedTensor(rows, queue.origin)
    if pointer is None:
        draft.fresh["queue_pointer"] = "queue pointer: 0"
        return
    if pointer.tensor.numel() != 1 or not 0 <= int(pointer.tensor) < len(rows):
        raise draft.error(f"{pointer.origin} is {pointer.tensor.tolist()}, expected an index below {len(rows)}")
    draft.tensors["queue_pointer"] = NamedTensor(pointer.tensor.reshape(()), pointer.origin)
