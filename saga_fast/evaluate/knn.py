"""Weighted k-nearest-neighbour classification (Wu et al., "Unsupervised feature learning via non-parametric instance
discrimination", CVPR 2018, section 3.4): neighbours vote with exp(similarity / temperature)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.loaders import Source
from saga_fast.runtime.distributed import rank, total, world_size


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
    """The top-1 accuracy of kNN for each k.

    All tensors are on one device, where the neighbours are searched: the similarities of a chunk are (chunk, N)
    float32 there, 5 GB for ImageNet. The result is the same in each run, because no two votes are added at once.

    Processes that torchrun started together pass the same tensors, share the chunks, and each returns the accuracies of
    all queries: those of one process, because a chunk is compared as a whole.

    Args:
        bank: (N, D) L2-normalised features with labels (N,).
        queries: (M, D) L2-normalised features with labels (M,).
        ks: numbers of neighbours.
        temperature: of the votes exp(similarity / temperature).
        leave_one_out: the queries are the bank, and an image is not its own neighbour.
        chunk: queries that are compared with the bank at a time.

    Raises:
        SagaError: k is more than the images in the bank, an image has no label, or features are not finite.
    """
    check_neighbours(max(ks), len(bank), leave_one_out=leave_one_out)
    check_finite(bank)
    check_finite(queries)
    if min(int(bank_labels.min()), int(labels.min())) < 0:
        raise SagaError("kNN needs labelled images: one folder per class")
    classes = int(bank_labels.max()) + 1
    hits = {k: labels.new_zeros(()) for k in ks}
    for begin in range(rank() * chunk, len(queries), world_size() * chunk):
        similarity = queries[begin : begin + chunk] @ bank.T
        if leave_one_out:
            similarity.diagonal(begin).fill_(float("-inf"))
        nearest, neighbours = similarity.topk(max(ks), dim=1)
        # Relative to the nearest neighbour's vote: neither too large for float32 nor all 0 for distant neighbours.
        votes = ((nearest - nearest[:, :1]) / temperature).exp()
        voted = bank_labels[neighbours]
        scores = votes.new_zeros(len(votes), classes)
        for nth in range(max(ks)):  # all at once, a GPU would add the votes of a class in any order
            place = slice(nth, nth + 1)
            scores.scatter_add_(1, voted[:, place], votes[:, place])
            if nth + 1 in hits:
                hits[nth + 1] += (scores.argmax(1) == labels[begin : begin + chunk]).sum()
    counts = total(torch.stack(list(hits.values()))).tolist()
    return {k: count / len(queries) for k, count in zip(hits, counts, strict=True)}


def check_finite(features: Tensor) -> None:
    """Check that features (N, D) are finite: comparisons with NaN would give the accuracy of chance.

    Raises:
        SagaError: those of any image are not.
    """
    if not bool((good := features.isfinite().all(1)).all()):
        bad = len(good) - int(good.sum())
        raise SagaError(
            f"the features of {bad} of {len(good)} images are not finite: evaluate an earlier checkpoint, or in fp32"
        )


def check_neighbours(k: int, images: int, *, leave_one_out: bool) -> None:
    """
    Raises:
        SagaError: ``k`` is more than the number of possible neighbours.
    """
    available = images - leave_one_out
    if k > available:
        raise SagaError(f"k = {k} is more than the {available} possible neighbours: choose a smaller k")


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
