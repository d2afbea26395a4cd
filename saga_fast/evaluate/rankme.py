"""RankMe, an effective rank of features, which needs no labels (Garrido et al., "RankMe: assessing the downstream
performance of pretrained self-supervised representations by their rank", ICML 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from saga_fast.evaluate.knn import check_finite

MAX_IMAGES = 25_600
"""As many as the paper takes of ImageNet."""
EPSILON = 1e-7
"""Added to each share, the paper's value for float32."""


def rankme(features: Tensor) -> float:
    """RankMe, from 1 to min(N, D): exp(-sum_k p_k log p_k), p_k = sigma_k / sum_j sigma_j + EPSILON.

    sigma are the singular values of the features. They are the roots of the eigenvalues of the smaller Gram matrix, in
    float64: exact to 1e-8 of the largest, which is the precision of float32 features, and cheaper than a decomposition.
    The paper takes features as they are; ours have length 1, as in kNN, because the losses compare them
    by their cosine.

    Args:
        features: (N, D); of more than MAX_IMAGES rows, as many evenly spaced ones are used.

    Raises:
        SagaError: features that are not finite.
    """
    check_finite(features)
    count = min(len(features), MAX_IMAGES)
    rows = torch.arange(count, device=features.device) * len(features) // count
    sample = features[rows].double()
    gram = sample.T @ sample if sample.shape[0] > sample.shape[1] else sample @ sample.T
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    share = sigma / sigma.sum().clamp_min(torch.finfo(torch.float64).tiny) + EPSILON
    return float((-(share * share.log()).sum()).exp())
