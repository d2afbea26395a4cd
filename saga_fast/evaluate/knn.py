"""Weighted k-nearest-neighbour classification (Wu et al., "Unsupervised feature learning via non-parametric instance
discrimination", CVPR 2018, section 3.4): neighbours vote with exp(similarity / temperature)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from saga_fast.distributed import agree, gather_uneven, is_main, rank, world_size
from saga_fast.errors import SagaError
from saga_fast.loaders import Loader, Source
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast, normalized

Layer = Literal["backbone", "projector"]
LAYERS: tuple[Layer, ...] = ("backbone", "projector")


def extract_features(
    model: Method,
    loader: Loader,
    *,
    precision: Precision = "fp32",
    channels_last: bool = False,
    progress: bool = False,
) -> tuple[dict[Layer, Tensor], Tensor]:
    """L2-normalised features of every image, in eval mode; the model's mode is restored.

    Processes that torchrun started together share the batches among them, and each gets everything.

    Returns:
        {"backbone": (M, dim), "projector": (M, 128)} float32 and labels (M,) int64, on the CPU, in the loader's order.
        M is the number of images that could be decoded. Several views of an image, or branches of a method (CMC), are
        side by side, each normalised before.
    """
    device = next(model.parameters()).device
    agree(loader.bad)
    loader.set_batches(np.arange(rank(), len(loader), world_size()) if world_size() > 1 else None)
    was_training = model.training
    model.eval()
    parts: dict[Layer, list[Tensor]] = {layer: [] for layer in LAYERS}
    labels, indices = [], []
    try:
        with tqdm(
            total=len(loader.source), desc="features", unit="img", disable=None if progress and is_main() else True
        ) as bar:
            for batch in loader:
                views = normalized(batch.views, model.encoder, device, channels_last=channels_last)
                with torch.no_grad(), autocast(device, precision):
                    branches = [branch for images in views.unbind(1) for branch in model.branches(images)]
                    h = [branch.encoder(branch.images) for branch in branches]
                    z = [branch.projector(each) for branch, each in zip(branches, h, strict=True)]
                for layer, features in zip(LAYERS, (h, z), strict=True):
                    parts[layer].append(_unit(features).cpu())
                labels.append(batch.label)
                indices.append(batch.index)
                bar.update(world_size() * len(batch.label))
    finally:
        model.train(was_training)
        loader.set_batches(None)
    if world_size() == 1:
        return {layer: torch.cat(part) for layer, part in parts.items()}, torch.cat(labels)
    order = gather_uneven(indices).argsort()  # as one process extracts it all
    return {layer: gather_uneven(part)[order] for layer, part in parts.items()}, gather_uneven(labels)[order]


def _unit(features: Sequence[Tensor]) -> Tensor:
    """Unit vectors side by side, themselves of length 1: similarity is the mean of the single cosines."""
    return torch.cat([F.normalize(feature.float(), dim=1) for feature in features], dim=1) / math.sqrt(len(features))


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
    leave_one_out: bool = False,
    chunk: int = 1024,
) -> dict[int, float]:
    """Top-1 accuracy of kNN for several k, the similarities computed ``chunk`` queries at a time.

    Args:
        bank: (N, D) L2-normalised features with labels (N,).
        queries: (M, D) L2-normalised features with labels (M,).
        ks: numbers of neighbours.
        temperature: of the votes exp(similarity / temperature).
        leave_one_out: the queries are the bank, and no image is its own neighbour.

    Raises:
        SagaError: k is more than the images in the bank, or an image has no label.
    """
    check_neighbours(max(ks), len(bank), leave_one_out=leave_one_out)
    if min(int(bank_labels.min()), int(labels.min())) < 0:
        raise SagaError("kNN needs labelled images: one folder per class")
    classes = int(bank_labels.max()) + 1
    hits = dict.fromkeys(ks, 0)
    for begin in range(0, len(queries), chunk):
        similarity = queries[begin : begin + chunk] @ bank.T
        if leave_one_out:
            similarity[torch.arange(len(similarity)), torch.arange(begin, begin + len(similarity))] = float("-inf")
        nearest, neighbours = similarity.topk(max(ks), dim=1)
        # Over the nearest one's vote: neither too large for float32 nor, for distant neighbours, all of them 0.
        votes = ((nearest - nearest[:, :1]) / temperature).exp()
        voted = bank_labels[neighbours]
        for k in ks:
            scores = torch.zeros(len(similarity), classes).scatter_add_(1, voted[:, :k], votes[:, :k])
            hits[k] += int((scores.argmax(1) == labels[begin : begin + chunk]).sum())
    return {k: hits[k] / len(queries) for k in ks}


def check_neighbours(k: int, images: int, *, leave_one_out: bool) -> None:
    """
    Raises:
        SagaError: ``k`` is more than the images to look among.
    """
    available = images - leave_one_out
    if k > available:
        raise SagaError(f"k = {k} needs as many images to look among, there are {available}: choose a smaller k")


def align_labels(labels: Tensor, source: Source, target: Source) -> Tensor:
    """Labels of ``source`` as positions in ``target``'s classes, by the folders' names.

    Raises:
        SagaError: a class of ``source`` that ``target`` lacks.
    """
    missing = sorted(set(source.classes) - set(target.classes))
    if missing:
        raise SagaError(f"class {missing[0]!r} of {source.root} is not in {target.root}")
    positions = torch.tensor([target.classes.index(name) for name in source.classes] or [-1])
    return positions[labels]
