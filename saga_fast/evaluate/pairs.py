"""Cosine similarity of positive pairs, from plain and from attention crops (SAGA, Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from saga_fast.evaluate.features import FrozenModel, Layer
from saga_fast.evaluate.knn import check_finite
from saga_fast.kernels import PhotometricRecipe, sample_photometrics
from saga_fast.loaders import Loader
from saga_fast.models.modes import eval_mode

BINS = 80
"""Bins of the histogram over [-1, 1]."""


def pair_similarities(
    frozen: FrozenModel,
    loader: Loader,
    recipe: PhotometricRecipe | Sequence[PhotometricRecipe],
    *,
    images: int | None = None,
    layer: Layer = "projector",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """The cosine similarity of each image's two views, in eval mode; the model's mode is restored.

    Args:
        frozen: the model; with several branches (CMC) the mean of their similarities is taken.
        loader: two views per image (:class:`saga_fast.loaders.CropPlan`).
        recipe: photometric augmentation of both views, or of each one, as in training.
        images: stop after this number of images; default: all.
        layer: the features to compare: z, which the loss compares, or h.
        seed: of the augmentation.
        progress: show a progress bar.

    Returns:
        (M,) float32 on the CPU, in the loader's order.

    Raises:
        SagaError: features that are not finite.
    """
    total = len(loader.source) if images is None else min(images, len(loader.source))
    parts: list[Tensor] = []
    done = 0
    bar = tqdm(total=total, desc="pairs", unit="img", disable=None if progress else True)
    with eval_mode(frozen.model), bar:
        for batch in loader:
            photometrics = sample_photometrics(recipe, seed, loader.epoch, batch.index, 2)
            first, second = frozen.features(batch, layer, photometrics=photometrics)
            cosines = [F.cosine_similarity(a, b) for a, b in zip(first, second, strict=True)]
            parts.append(torch.stack(cosines).mean(0).cpu())
            done += len(batch.index)
            bar.update(min(len(batch.index), total - bar.n))
            if done >= total:
                break
    similarities = torch.cat(parts)[:total]
    check_finite(similarities[:, None])
    return similarities


def histogram(similarities: Tensor) -> dict[str, Any]:
    """``mean``, ``std``, ``images``, and the ``counts`` (BINS,) between ``edges`` (BINS + 1,), in JSON's types."""
    values = similarities.double().clamp(-1.0, 1.0).numpy()
    counts, edges = np.histogram(values, bins=BINS, range=(-1.0, 1.0))
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "images": len(values),
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": counts.tolist(),
    }
