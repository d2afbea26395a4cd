"""timm's vision transformers as encoders: patch tokens as a map, pooling of tokens, attention of the class token.

Legend: B images, P prefix tokens (the class token and registers), (u, v) patches, N = P + u v tokens of C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models import is_model_in_modules
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from saga_fast.errors import SagaError

MODULES = ("vision_transformer", "deit")
"""timm's files whose networks are all a ``VisionTransformer``."""
POOLINGS = ("token", "avg", "max", "avgmax", "map")
"""The ``global_pool`` that are supported: the class token, or a function of all final patch tokens."""


def is_transformer(name: str) -> bool:
    """Whether timm's network of this name is a ``VisionTransformer``: ViT, DeiT, CLIP, SigLIP, DINOv2 and more."""
    return bool(is_model_in_modules(name, MODULES))


def check_transformer(backbone: VisionTransformer, name: str) -> None:
    """Check that the attention pass supports a network.

    Raises:
        SagaError: a pooling that is not in POOLINGS, or fewer than two blocks.
    """
    if backbone.global_pool not in POOLINGS:
        raise SagaError(
            f"encoder {name!r} has global_pool={backbone.global_pool!r}, which is not supported: set"
            f" encoder.args.global_pool to one of {', '.join(POOLINGS)}"
        )
    if len(backbone.blocks) < 2:
        raise SagaError(f"encoder {name!r} has {len(backbone.blocks)} block: encoder.args.depth must be at least 2")


def patch_side(backbone: VisionTransformer) -> int:
    """The smallest side of a square image that is whole patches, pixels; all others are its multiples."""
    return math.lcm(*backbone.patch_embed.patch_size)


def check_sides(backbone: VisionTransformer, name: str, sides: Sequence[int]) -> None:
    """Check that images of these sides, in pixels, are whole patches.

    Raises:
        SagaError: patches do not divide a side.
    """
    patch = patch_side(backbone)
    for side in sides:
        if side % patch:
            near = [number * patch for number in (side // patch, side // patch + 1) if number]
            raise SagaError(
                f"encoder {name!r} cuts images into patches of {patch} px, and {side} px is no multiple of them: choose"
                f" {' or '.join(map(str, near))} px"
            )


def patch_activations(backbone: VisionTransformer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The patch tokens A as a map, and the prefix tokens of the same depth.

    If the class token is pooled, h does not depend on the last block's outputs at the patches, so A are the tokens that
    enter this block. Any other pooling takes the final tokens of all patches, and these are A.

    Args:
        backbone: the network.
        x: (B, channels, height, width), whole patches.

    Returns:
        (B, C, u, v) and (B, P, C): views of one tensor.
    """
    if backbone.global_pool == "token":
        entering = len(backbone.blocks) - 2
        recorded: Any = backbone.forward_intermediates(
            x,
            indices=[entering],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        ((patches, prefix),) = recorded
    else:
        tokens, count = backbone.forward_features(x), backbone.num_prefix_tokens
        prefix, patches = tokens[:, :count], tokens[:, count:]
    u, v = backbone.patch_embed.dynamic_feat_size(x.shape[2:])
    return patches.transpose(1, 2).view(len(x), -1, u, v), prefix


def pooled_tokens(backbone: VisionTransformer, features: Tensor, prefix: Tensor) -> Tensor:
    """h (B, C) from :func:`patch_activations`, for a network in eval mode.

    If the class token is pooled, this is the last block: its keys and values of all tokens, and the remainder of the
    block for the prefix tokens only, a quarter of the block's work.
    """
    tokens = _tokens(features, prefix)
    if backbone.global_pool == "token":
        block, count = backbone.blocks[-1], prefix.shape[1]
        tokens = backbone.norm(_first_outputs(block, tokens, count) if _is_plain(block) else block(tokens))
    h: Tensor = backbone.forward_head(tokens, pre_logits=True)
    return h


def has_class_attention(backbone: VisionTransformer) -> bool:
    """Whether :func:`class_attention` is defined: the class token is pooled, and the last block is timm's plain one.

    Under another pooling the last block's query of the class token gets no gradient, so that its attention is random.
    """
    return backbone.global_pool == "token" and _is_plain(backbone.blocks[-1])


def class_attention(backbone: VisionTransformer, features: Tensor, prefix: Tensor) -> Tensor:
    """The last block's attention of the class token to the patches, averaged over the heads: (B, u, v) float32.

    DINO's attention maps (Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021,
    Fig. 1). They sum to 1 with the attention to the prefix tokens.
    """
    block: Any = backbone.blocks[-1]
    query, key, _ = _heads(block, _tokens(features, prefix), 1)
    logits = block.attn.scale * query.float() @ key.float().transpose(2, 3)
    attention: Tensor = logits.softmax(3)[:, :, 0, prefix.shape[1] :].mean(1)
    return attention.view(len(features), *features.shape[2:])


def _tokens(features: Tensor, prefix: Tensor) -> Tensor:
    """(B, C, u, v) and (B, P, C) -> (B, N, C)."""
    return torch.cat([prefix.to(features.dtype), features.flatten(2).transpose(1, 2)], 1)


def _is_plain(block: Any) -> bool:
    """Whether a block is timm's default one, whose attention is not gated."""
    return type(block) is Block and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None


def _first_outputs(block: Any, tokens: Tensor, count: int) -> Tensor:
    """The first ``count`` outputs of a plain block: (B, N, C) -> (B, count, C)."""
    attn = block.attn
    attended = F.scaled_dot_product_attention(*_heads(block, tokens, count)).transpose(1, 2).flatten(2)
    x = tokens[:, :count] + block.ls1(attn.proj(attn.norm(attended)))
    outputs: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return outputs


def _heads(block: Any, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, heads, count, D) of the first ``count`` tokens, and keys and values (B, heads, N, D)."""
    attn = block.attn
    qkv = attn.qkv(block.norm1(tokens)).view(*tokens.shape[:2], 3, attn.num_heads, attn.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return attn.q_norm(query[:, :, :count]), attn.k_norm(key), value
