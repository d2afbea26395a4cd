"""Cosine similarity of positive pairs, from plain and from attention crops (SAGA, Fig. 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from saga_fast.evaluate.knn import Layer
from saga_fast.kernels import PhotometricRecipe, sample_photometrics
from saga_fast.loaders import Loader
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast, normalized

BINS = 80
"""Of the histogram, over [-1, 1]."""


def pair_similarities(
    model: Method,
    loader: Loader,
    recipe: PhotometricRecipe,
    *,
    images: int | None = None,
    layer: Layer = "projector",
    seed: int = 0,
    precision: Precision = "fp32",
    channels_last: bool = False,
    progress: bool = False,
) -> Tensor:
    """Cosine similarity of each image's first two views, in eval mode; the model's mode is restored.

    Args:
        model: of several branches (CMC) the mean of their similarities counts.
        loader: two views per image (:class:`saga_fast.loaders.CropPlan`).
        recipe: photometric augmentation of both views, as in training.
        images: stop after so many; default: all.
        layer: what is compared: z, which the loss compares, or h.
        seed: of the augmentation.
        precision, channels_last: how the model runs.
        progress: show a progress bar.

    Returns:
        (M,) float32 on the CPU, in the loader's order.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = len(loader.source) if images is None else min(images, len(loader.source))
    parts: list[Tensor] = []
    done = 0
    try:
        with tqdm(total=total, desc="pairs", unit="img", disable=None if progress else True) as bar:
            for batch in loader:
                photometrics = sample_photometrics(recipe, seed, loader.epoch, batch.index, 2)
                views = normalized(
                    batch.views[:, :2], model.encoder, device, photometrics=photometrics, channels_last=channels_last
                )
                with torch.no_grad(), autocast(device, precision):
                    first, second = (_features(model, images, layer) for images in views.unbind(1))
                cosines = [F.cosine_similarity(a.float(), b.float()) for a, b in zip(first, second, strict=True)]
                parts.append(torch.stack(cosines).mean(0).cpu())
                done += len(batch.index)
                bar.update(min(len(batch.index), total - bar.n))
                if done >= total:
                    break
    finally:
        model.train(was_training)
    return torch.cat(parts)[:total]


def _features(model: Method, images: Tensor, layer: Layer) -> list[Tensor]:
    pairs = [(branch, branch.encoder(branch.images)) for branch in model.branches(images)]
    return [h if layer == "backbone" else branch.projector(h) for branch, h in pairs]


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
