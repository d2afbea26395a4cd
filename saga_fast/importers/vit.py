"""Vision transformers, by themselves or in facebookresearch's DINO and MoCo v3: their names are timm's."""

from __future__ import annotations

import math
from typing import Any

from saga_fast.importers.tensors import NamedTensor, Part

NAMES: dict[tuple[int, int, int], str] = {
    (192, 12, 16): "vit_tiny_patch16_224",
    (384, 12, 16): "vit_small_patch16_224",
    (384, 12, 8): "vit_small_patch8_224",
    (768, 12, 16): "vit_base_patch16_224",
    (768, 12, 8): "vit_base_patch8_224",
    (1024, 24, 16): "vit_large_patch16_224",
    (384, 12, 14): "vit_small_patch14_dinov2",
    (768, 12, 14): "vit_base_patch14_dinov2",
    (1024, 24, 14): "vit_large_patch14_dinov2",
    (1536, 40, 14): "vit_giant_patch14_dinov2",
}
"""(channels, blocks, patch in pixels) -> name in timm."""
OTHER = "vit_small_patch16_224"
"""The network whose arguments describe any other."""
DINOV2_SIDE = 518
"""The images of DINOv2's position embeddings, pixels."""
HEAD_WIDTH = 64
"""Channels of an attention head in all of NAMES."""


def is_vit(part: Part) -> bool:
    """Whether the tensors are those of a vision transformer."""
    return "patch_embed.proj.weight" in part


def read_vit(part: Part, *, heads: int | None = None) -> tuple[dict[str, Any], int]:
    """The encoder's config (name, args) of a vision transformer, and its images' side, from the tensors' shapes.

    The side is that of the position embeddings, except for DINOv2, whose embeddings are for 518 px: 224.

    Args:
        part: the tensors. DINOv2's names become timm's: its position of the class token moves into the class token
            where there are registers, as in timm, and ``mask_token`` is removed.
        heads: number of attention heads, which no shape tells; default: one for each 64 channels.

    Raises:
        SagaError: a missing tensor, or one of another number of dimensions.
    """
    patches = part.need("patch_embed.proj.weight").tensor
    if patches.ndim != 4 or 0 in patches.shape:
        raise part.shape_error("patch_embed.proj.weight", "expected that of a convolution")
    width, patch = patches.shape[0], patches.shape[-1]
    for name in ("cls_token", "pos_embed", "register_tokens"):
        if (name != "register_tokens" or name in part) and part.need(name).tensor.shape[::2] != (1, width):
            raise part.shape_error(name, f"expected (1, tokens, {width})")
    depth = len({name.split(".")[1] for name in part if name.startswith("blocks.")})
    count = part["pos_embed"].tensor.shape[1] - 1
    side = math.isqrt(max(count, 0))
    if side * side != count or not side:
        raise part.shape_error("pos_embed", "expected those of a class token and a square of patches")
    registers = _convert_dinov2(part)
    name = NAMES.get((width, depth, patch), OTHER)
    args: dict[str, Any] = {}
    if (width, depth, patch) not in NAMES:
        args |= {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": max(1, width // HEAD_WIDTH)}
    if heads is not None and heads != max(1, width // HEAD_WIDTH):
        args["num_heads"] = heads
    is_dinov2, pixels = name.endswith("dinov2"), side * patch
    if pixels != (DINOV2_SIDE if is_dinov2 else 224):
        args["img_size"] = pixels
    if registers == 4 and is_dinov2:
        name = name.replace("_dinov2", "_reg4_dinov2")
    elif registers:
        args |= {"reg_tokens": registers, "no_embed_class": True}
    args |= _block_args(part, name)
    return {"name": name} | ({"args": args} if args else {}), 224 if pixels == DINOV2_SIDE else pixels


def _convert_dinov2(part: Part) -> int:
    """Give DINOv2's tensors timm's names, and return its number of registers."""
    part.pop("mask_token", None)
    for name in [name for name in part if ".mlp.w12." in name or ".mlp.w3." in name]:  # ViT-g's SwiGLU
        part[name.replace(".w12.", ".fc1.").replace(".w3.", ".fc2.")] = part.pop(name)
    if "register_tokens" not in part:
        return 0
    registers = part["reg_token"] = part.pop("register_tokens")
    (positions, origin), token = part["pos_embed"], part.need("cls_token")
    part["cls_token"] = NamedTensor(token.tensor + positions[:, :1], token.origin)
    part["pos_embed"] = NamedTensor(positions[:, 1:], origin)
    return registers.tensor.shape[1]


def _block_args(part: Part, name: str) -> dict[str, Any]:
    """The arguments in which the blocks differ from the default of ``name``."""
    args: dict[str, Any] = {}
    if "blocks.0.ls1.gamma" in part and not name.endswith("dinov2"):
        args["init_values"] = 1.0  # there is a scale per layer: its values are the file's
    if "blocks.0.attn.qkv.bias" not in part:
        args["qkv_bias"] = False
    hidden, width = part.need("blocks.0.mlp.fc1.weight").tensor, part["pos_embed"].tensor.shape[2]
    if hidden.ndim == 2 and len(hidden) != 4 * width and "giant" not in name:
        args["mlp_ratio"] = len(hidden) / width
    return args
