"""xyupeng/ContrastiveCrop: MoCo and SimCLR, and its boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import read_state
from saga_fast.importers.tensors import Tensors


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file has ``moco_state`` or ``simclr_state``."""
    return "moco_state" in content or "simclr_state" in content


def read(draft: Draft) -> None:
    """Read MoCo, as in facebookresearch/moco, or SimCLR with projector ``fc``, and ``boxes`` (N, 4)."""
    if "moco_state" in draft:
        read_state(draft, draft.state_dict("moco_state"))
    else:
        tensors = draft.state_dict("simclr_state")
        fields = draft.place_mlp(tensors.take("fc."))
        draft.place_resnet(tensors.take())
        draft.method = {"name": "simclr", "temperature": 0.5, **fields}
        tensors.finish("ContrastiveCrop")
    boxes = draft.entry("boxes")
    if isinstance(boxes, torch.Tensor):
        checked = Tensors(draft.path, {"boxes": boxes}).take()["boxes"].tensor.float()
        if checked.ndim != 2 or checked.shape[1] != 4:
            raise draft.error(f"boxes has shape {tuple(checked.shape)}, expected (images, 4)")
        if bool((checked < 0.0).any()) or bool((checked > 1.0).any()):
            raise draft.error("boxes holds numbers outside of [0, 1], expected fractions of the image's sides")
        draft.boxes = checked.numpy()
