"""Cosine similarity of positive pairs, from plain and from attention crops (SAGA, Fig. 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from saga_fast.evaluate.features import FrozenModel, Layer, gather_in_order, local_batches
from saga_fast.evaluate.knn import check_finite
from saga_fast.kernels import PhotometricRecipe, sample_photometrics
from saga_fast.loaders import Loader
from saga_fast.models.modes import eval_mode
from saga_fast.runtime.distributed import is_main, rank, world_size

BINS = 80
"""Bins of the histogram over [-1, 1]."""


def pair_similarities(
    frozen: FrozenModel,
    loader: Loader,
    recipe: PhotometricRecipe,
    *,
    images: int | None = None,
    layer: Layer = "projector",
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """The cosine similarity of each image's two views, in eval mode; the model's mode is restored.

    Processes that torchrun started together share the batches, and each returns all similarities.

    Args:
        frozen: the model; with several branches (CMC) the mean of their similarities is taken.
        loader: two views per image (:class:`saga_fast.loaders.CropPlan`), shuffled.
        recipe: photometric augmentation of both views, as in training.
        images: only the first ones in the loader's order; default: all.
        layer: the features to compare: z, which the loss compares, or h.
        seed: of the augmentation.
        progress: show a progress bar.

    Returns:
        (M,) float32 on the CPU, in the loader's order.

    Raises:
        SagaError: features that are not finite.
    """
    total, size = len(loader.source) if images is None else min(images, len(loader.source)), loader.global_batch_size
    parts: list[Tensor] = []
    numbers: list[Tensor] = []  # of the images' batches
    bar = tqdm(total=total, desc="pairs", unit="img", disable=None if progress and is_main() else True)
    with eval_mode(frozen.model), bar:
        for place, batch in enumerate(local_batches(loader, -(-total // size))):
            photometrics = sample_photometrics(recipe, seed, loader.epoch, batch.index, 2)
            first, second = frozen.features(batch, layer, photometrics=photometrics)
            cosines = [F.cosine_similarity(a, b) for a, b in zip(first, second, strict=True)]
            parts.append(torch.stack(cosines).mean(0).cpu())
            numbers.append(torch.full_like(batch.index, rank() + place * world_size()))
            bar.update(min(world_size() * len(batch.index), total - bar.n))
    similarities = gather_in_order(numbers, parts)[:total]
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
