"""lightly-ai/lightly: SimCLR and MoCo as Lightning checkpoints or bare state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_config, place_queue
from saga_fast.importers.tensors import Tensors, has_prefix

HEAD = "projection_head.layers."
SEQUENTIAL = (
    ("0.", "conv1."),
    ("1.", "bn1."),
    ("4.", "layer1."),
    ("5.", "layer2."),
    ("6.", "layer3."),
    ("7.", "layer4."),
)
"""Names of ``nn.Sequential(*resnet.children())[:-1]`` in lightly's examples, and of torchvision's ResNet."""
KEYS = (("backbone_momentum.", "projection_head_momentum."), ("key_backbone.", "key_projection_head."))
"""Prefixes of the momentum encoder and projector, in lightly's examples and in its benchmarks."""


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file or its ``state_dict`` has ``projection_head.layers``."""
    return has_prefix(content, HEAD) or has_prefix(content.get("state_dict"), HEAD)


def read(draft: Draft) -> None:
    """Read ``backbone.*`` and ``projection_head.layers.*``.

    MoCo also has their momentum copies and, in few files, the queue.
    """
    tensors = draft.state_dict("state_dict") if "state_dict" in draft else draft.state_dict()
    keys = next((names for names in KEYS if tensors.has_prefix(*names)), None)
    if keys:
        projector = draft.place_projector(tensors.take(HEAD))
        _place_backbone(draft, tensors, "backbone.", "encoder")
        draft.place_projector(tensors.take(f"{keys[1]}layers."), "key_projector")
        _place_backbone(draft, tensors, keys[0], "key_encoder")
        queue = pointer = None
        if tensors.has_prefix("criterion.memory_bank."):
            queue = draft.take_memory(tensors, "criterion.memory_bank.bank")
            pointer = draft.take_memory(tensors, "criterion.memory_bank.bank_ptr")
        dim = projector.widths[-1]
        transposed = queue is not None and queue.tensor.shape[0] == dim and queue.tensor.shape[-1] != dim
        place_queue(draft, projector, queue, pointer, transposed=transposed)
        draft.method = moco_config(draft, projector)
    else:
        draft.method = {
            "name": "simclr",
            "temperature": 0.1,
            **draft.place_mlp(tensors.take(HEAD)),
        }
        _place_backbone(draft, tensors, "backbone.", "encoder")
    if count := tensors.drop("online_classifier.", "knn_classifier.", "criterion.memory_bank."):
        draft.dropped.append(f"online classifiers and memory bank ({count} tensors)")
    tensors.finish("lightly SimCLR or MoCo")


def _place_backbone(draft: Draft, tensors: Tensors, prefix: str, to: str) -> None:
    renames = SEQUENTIAL if tensors.has_prefix(f"{prefix}0.", f"{prefix}1.") else ()
    part = tensors.take(prefix, renames=renames)
    for name in [name for name in part if name.startswith("fc.")]:
        del part[name]  # one of lightly's examples saves an unused classifier
    draft.place_resnet(part, to)
