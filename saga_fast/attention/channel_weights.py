"""The channel weights alpha (SAGA, Eq. 2), without differentiating the backbone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from saga_fast.models.encoder import Encoder
from saga_fast.models.precision import Precision, autocast

Score = Literal["pseudo_label", "activation", "background", "token"]


def channel_weights(
    encoder: Encoder,
    projector: nn.Module,
    features: Tensor,
    score: Score,
    *,
    prefix: Tensor | None = None,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor, Tensor]:
    """The channel weights alpha (Eq. 2), the pseudo labels and their scores, for a model in eval mode.

    Where pooling is the global average, h = mean_ij A and dz^c/dA_ij = (1/Z) dz^c/dh, so alpha = (1/Z) dz^c/dh:
    only the projector is differentiated, and a linear projector needs no backward pass: alpha = W[c] / Z. Any other
    pooling is differentiated back to A and averaged over the positions, which gives the same numbers for global average
    pooling. The backbone is never differentiated, except for the last block of a vision transformer that pools its
    class token: there A enters the last block (:mod:`saga_fast.models.transformer`).

    Args:
        encoder, projector: f and g.
        features: A (B, C, u, v), float32, float16 or bfloat16.
        score: ``pseudo_label`` differentiates z^c; for the scores that differentiate nothing alpha is 1.
        prefix: a vision transformer's prefix tokens (B, P, C).
        precision: autocast type of a vision transformer's last block; all else is computed in float32.

    Returns:
        alpha (B, C) float32, the pseudo label c (B,) int64, and z^c (B,) float32.
    """
    features = features.detach()
    cells = features.shape[2] * features.shape[3]
    pooled = encoder.is_global_average
    differentiate = score == "pseudo_label"
    with torch.set_grad_enabled(differentiate):
        # Half-precision features are summed in float32 where they are: a copy takes 205 MB at batch 512, 2048 x 7 x 7.
        source = features.mean((2, 3), dtype=torch.float32) if pooled else features.float()
        source.requires_grad_(differentiate)
        with autocast(features.device, precision if encoder.is_transformer else "fp32"):
            h = source if pooled else encoder.pool(source, prefix)
        z = projector(h.float())
        value, label = z.max(1)
        if not differentiate:
            return torch.ones(features.shape[:2], device=features.device), label, value
        if pooled and isinstance(projector, nn.Linear):
            gradient = projector.weight[label].detach()
        else:
            # In eval mode rows are independent, so the gradient of the sum holds each row's gradient.
            (gradient,) = torch.autograd.grad(value.sum(), source)
    alpha = gradient / cells if pooled else gradient.mean((2, 3))
    return alpha, label, value.detach()
