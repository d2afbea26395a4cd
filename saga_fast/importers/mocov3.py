"""facebookresearch/moco-v3, with a vision transformer or a ResNet.

Its loss is SimCLR's between predictions and the projections of a momentum encoder. saga-fast's SimCLR has neither: it
takes the encoder and the projector, which give the boxes and the features, and trains these two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import has_prefix

HEADS = {384: 12, 768: 12}
"""Channels -> attention heads of the project's ViT-S and ViT-B: its ViT-S has more than others."""


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``state_dict`` has names that start with ``base_encoder.``."""
    return has_prefix(content.get("state_dict"), "base_encoder.")


def read(draft: Draft) -> None:
    """Read ``base_encoder``, whose last layer ``head`` or ``fc`` is the projector."""
    tensors = draft.state_dict("state_dict")
    if count := tensors.drop("momentum_encoder.", "predictor."):
        draft.dropped.append(f"momentum encoder and predictor ({count} tensors)")
    is_vit = tensors.has_prefix("base_encoder.patch_embed.")
    fields = draft.place_mlp(tensors.take(f"base_encoder.{'head' if is_vit else 'fc'}."), affine=False)
    if tensors.has_prefix("base_encoder.patch_embed.proj.0."):
        raise draft.error("has a convolutional stem (vit_conv_small or vit_conv_base), which timm's ViT has not")
    part = tensors.take("base_encoder.")
    width = part.need("patch_embed.proj.weight").tensor.shape[0] if is_vit else 0
    draft.place_backbone(part, heads=HEADS.get(width))
    tensors.finish("MoCo v3")
    draft.method = {"name": "simclr", "temperature": 0.2 if is_vit else 1.0, **fields}  # CONFIG.md's
