"""vturrisi/solo-learn: SimCLR and MoCo v2+ as Lightning checkpoints, ``backbone.*`` or, until 2022, ``encoder.*``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_values, place_queue
from saga_fast.importers.tensors import Piece, Tensors, begins

STD = (0.247, 0.243, 0.261)
"""Of CIFAR-10, as solo-learn has it."""


def matches(content: Mapping[str, Any]) -> bool:
    """``state_dict`` with ``backbone`` or ``encoder``, and ``projector``."""
    state = content.get("state_dict")
    return begins(state, "projector.") and begins(state, "backbone.", "encoder.")


def read(draft: Draft) -> None:
    """ResNets for CIFAR have a 3x3 first convolution with padding 2; MoCo v2+ is symmetric and has two queues."""
    tensors = draft.tensors("state_dict")
    backbone = "backbone." if tensors.has("backbone.") else "encoder."
    if tensors.has(f"momentum_{backbone}"):
        _read_moco(draft, tensors, backbone)
    else:
        draft.method = {"name": "simclr", "temperature": 0.2, **draft.place_mlp(tensors.take("projector."))}
        draft.place_resnet(tensors.take(backbone))
    if draft.encoder["stem"] == "small":
        draft.encoder |= {"stem_padding": 2, "std": STD}
    if count := tensors.drop("classifier.", "momentum_classifier."):
        draft.dropped.append(f"online classifier ({count} tensors)")
    tensors.finish("solo-learn SimCLR or MoCo v2+")


def _read_moco(draft: Draft, tensors: Tensors, backbone: str) -> None:
    projector = draft.place_projector(tensors.take("projector."))
    draft.place_resnet(tensors.take(backbone))
    draft.place_projector(tensors.take("momentum_projector."), "key_projector")
    draft.place_resnet(tensors.take(f"momentum_{backbone}"), "key_encoder")
    queues, pointer = draft.memory(tensors, "queue"), draft.memory(tensors, "queue_ptr")
    second = None
    if queues is not None:
        if queues.tensor.ndim != 3 or queues.tensor.shape[0] != 2:
            raise draft.fail(f"{queues.origin} has shape {tuple(queues.tensor.shape)}, expected (2, dim, K)")
        second = Piece(queues.tensor[1], f"{queues.origin}[1]")
        draft.dropped.append(
            "queue of the first views' keys: the loss here goes one way, from view 1 to keys of view 2"
        )
    place_queue(draft, projector, second, pointer, transposed=True)
    draft.method = moco_values(draft, projector, temperature=0.2, momentum=0.99)
