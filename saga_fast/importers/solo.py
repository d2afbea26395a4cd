"""vturrisi/solo-learn: SimCLR and MoCo v2+ as Lightning checkpoints.

The encoder is ``backbone.*``, until 2022 ``encoder.*``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_config, place_queue
from saga_fast.importers.tensors import NamedTensor, Tensors, has_prefix

STD = (0.247, 0.243, 0.261)
"""Standard deviation of CIFAR-10's channels in solo-learn."""


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``state_dict`` has ``projector``, and ``backbone`` or ``encoder``."""
    state = content.get("state_dict")
    return has_prefix(state, "projector.") and has_prefix(state, "backbone.", "encoder.")


def read(draft: Draft) -> None:
    """Read the encoder, the projector and for MoCo v2+ their momentum copies and the queue.

    CIFAR's ResNets have a 3x3 first convolution with padding 2. MoCo v2+ has a queue for the keys of each view.
    """
    tensors = draft.state_dict("state_dict")
    backbone = "backbone." if tensors.has_prefix("backbone.") else "encoder."
    if tensors.has_prefix(f"momentum_{backbone}"):
        _read_moco(draft, tensors, backbone)
    else:
        draft.method = {"name": "simclr", "temperature": 0.2, **draft.place_mlp(tensors.take("projector."))}
        draft.place_resnet(tensors.take(backbone))
    if draft.encoder["stem"] == "small":
        draft.encoder |= {"stem_padding": 2, "std": STD}
        draft.input_origin = "CIFAR-10's in the project's code, assumed because of the 3x3 first convolution"
    if count := tensors.drop("classifier.", "momentum_classifier."):
        draft.dropped.append(f"online classifier ({count} tensors)")
    tensors.finish("solo-learn SimCLR or MoCo v2+")


def _read_moco(draft: Draft, tensors: Tensors, backbone: str) -> None:
    projector = draft.place_projector(tensors.take("projector."))
    draft.place_resnet(tensors.take(backbone))
    draft.place_projector(tensors.take("momentum_projector."), "key_projector")
    draft.place_resnet(tensors.take(f"momentum_{backbone}"), "key_encoder")
    queues, pointer = draft.take_memory(tensors, "queue"), draft.take_memory(tensors, "queue_ptr")
    second = None
    if queues is not None:
        if queues.tensor.ndim != 3 or queues.tensor.shape[0] != 2:
            raise draft.error(f"{queues.origin} has shape {tuple(queues.tensor.shape)}, expected (2, dim, K)")
        second = NamedTensor(queues.tensor[1], f"{queues.origin}[1]")
        draft.dropped.append("queue of the first views' keys: in saga-fast only the first views are queries")
    place_queue(draft, projector, second, pointer, transposed=True)
    draft.method = moco_config(draft, projector, temperature=0.2, momentum=0.99)
