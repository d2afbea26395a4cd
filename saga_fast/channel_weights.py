"""The channel weights alpha (SAGA, Eq. 2): what the score differentiates to, without differentiating the backbone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from saga_fast.encoder import Encoder

Score = Literal["pseudo_label", "norm", "activation", "background"]


def channel_weights(
    encoder: Encoder, projector: nn.Module, features: Tensor, score: Score
) -> tuple[Tensor, Tensor, Tensor]:
    """alpha of Eq. 2 in float32, for a model in eval mode.

    Where pooling is the global average, h = mean_ij A and dz^c/dA_ij = (1/Z) dz^c/dh, so alpha = (1/Z) dz^c/dh:
    only the projector is differentiated, and a linear one not even that (alpha = W[c] / Z). Any other pooling is
    differentiated back to A and averaged, which gives the same numbers for global average pooling. The backbone never
    is.

    Args:
        encoder, projector: f and g.
        features: A (B, C, u, v).
        score: see :class:`~saga_fast.attention_config.AttentionConfig`; where nothing is differentiated, alpha is 1.

    Returns:
        alpha (B, C) float32, the pseudo label c (B,) int64, and z^c (B,) float32.
    """
    features = features.detach().float()
    cells = features.shape[2] * features.shape[3]
    closed = encoder.is_global_average
    differentiated = score in ("pseudo_label", "norm")
    with torch.set_grad_enabled(differentiated):
        source = encoder.pool(features).detach() if closed else features
        source.requires_grad_(differentiated)
        z = projector(source if closed else encoder.pool(source))
        value, label = z.max(1)
        if not differentiated:
            return torch.ones(features.shape[:2], device=features.device), label, value
        if closed and isinstance(projector, nn.Linear):
            jacobian = projector.weight[label] if score == "pseudo_label" else z @ projector.weight
            gradient = jacobian.detach()
        else:
            # Rows are independent in eval mode, so the gradient of the sum holds each row's own.
            target = value.sum() if score == "pseudo_label" else 0.5 * z.square().sum()
            (gradient,) = torch.autograd.grad(target, source)
    alpha = gradient / cells if closed else gradient.mean((2, 3))
    return alpha, label, value.detach()
