"""facebookresearch/simsiam.

saga-fast has no SimSiam: SimCLR takes the encoder and the projector, which give the boxes and the features, and trains
these two with its own loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import has_prefix


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``state_dict`` has an encoder with a projector as ``fc``, and a predictor."""
    state = content.get("state_dict")
    return has_prefix(state, "encoder.fc.") and has_prefix(state, "predictor.")


def read(draft: Draft) -> None:
    """Read ``encoder``, whose last layer ``fc`` is the projector."""
    tensors = draft.state_dict("state_dict")
    draft.dropped.append(f"predictor ({tensors.drop('predictor.')} tensors)")
    fields = draft.place_mlp(tensors.take("encoder.fc."), affine=False)
    draft.place_resnet(tensors.take("encoder."))
    tensors.finish("SimSiam")
    draft.method = {"name": "simclr", **fields}
