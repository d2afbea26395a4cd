"""lightly-ai/lightly: SimCLR and MoCo as Lightning checkpoints or bare state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_values, place_queue
from saga_fast.importers.tensors import Tensors, begins

HEAD = "projection_head.layers."
SEQUENTIAL = (
    ("0.", "conv1."),
    ("1.", "bn1."),
    ("4.", "layer1."),
    ("5.", "layer2."),
    ("6.", "layer3."),
    ("7.", "layer4."),
)
"""``nn.Sequential(*resnet.children())[:-1]`` of lightly's examples."""
KEYS = (("backbone_momentum.", "projection_head_momentum."), ("key_backbone.", "key_projection_head."))
"""Of lightly's examples and of its benchmarks."""


def matches(content: Mapping[str, Any]) -> bool:
    """``projection_head.layers``, in ``state_dict`` or at the top."""
    return begins(content, HEAD) or begins(content.get("state_dict"), HEAD)


def read(draft: Draft) -> None:
    """``backbone.*``, ``projection_head.layers.*`` and for MoCo their momentum copies; the queue is rarely saved."""
    tensors = draft.tensors("state_dict") if "state_dict" in draft else draft.tensors()
    keys = next((names for names in KEYS if tensors.has(*names)), None)
    if keys:
        projector = draft.place_projector(tensors.take(HEAD))
        _place_backbone(draft, tensors, "backbone.", "encoder")
        draft.place_projector(tensors.take(f"{keys[1]}layers."), "key_projector")
        _place_backbone(draft, tensors, keys[0], "key_encoder")
        queue = pointer = None
        if tensors.has("criterion.memory_bank."):
            queue = draft.memory(tensors, "criterion.memory_bank.bank")
            pointer = draft.memory(tensors, "criterion.memory_bank.bank_ptr")
        dim = projector.widths[-1]
        transposed = queue is not None and queue.tensor.shape[0] == dim and queue.tensor.shape[-1] != dim
        place_queue(draft, projector, queue, pointer, transposed=transposed)
        draft.method = moco_values(draft, projector)
    else:
        draft.method = {
            "name": "simclr",
            "temperature": 0.1,
            **draft.place_mlp(tensors.take(HEAD)),
        }
        _place_backbone(draft, tensors, "backbone.", "encoder")
    if count := tensors.drop("online_classifier.", "knn_classifier.", "criterion.memory_bank."):
        draft.dropped.append(f"online classifier and the like ({count} tensors)")
    tensors.finish("lightly SimCLR or MoCo")


def _place_backbone(draft: Draft, tensors: Tensors, prefix: str, to: str) -> None:
    renames = SEQUENTIAL if tensors.has(f"{prefix}0.", f"{prefix}1.") else ()
    part = tensors.take(prefix, renames=renames)
    for name in [name for name in part if name.startswith("fc.")]:
        del part[name]  # an example that keeps the classifier that it does not use
    draft.place_resnet(part, to)
