"""Untrained networks, their batches and the bare forward pass, for the benchmarks of the attention pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saga_fast.attention import AttentionPass
from saga_fast.loaders import Loader
from saga_fast.methods import Method, build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.precision import autocast, normalize_views

CPU = torch.device("cpu")


def untrained_model(name: str, size: int, *, channels_last: bool) -> Method:
    """A SimCLR model with fresh weights in eval mode, its stem as EncoderConfig advises for the size."""
    torch.manual_seed(0)
    encoder = EncoderConfig(name=name, stem="imagenet" if size >= 128 else "medium" if size >= 64 else "small")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return build_method(SimCLRConfig(), encoder).eval().to(memory_format=layout)


def whole_images(model: Method, loader: Loader, options: AttentionPass) -> Iterator[tuple[Tensor, Tensor]]:
    """The index and the normalised images of each batch."""
    channels_last, precision = options.channels_last, options.precision
    for batch in loader:
        views = normalize_views(batch.views, model.encoder, CPU, channels_last=channels_last, precision=precision)
        yield batch.index, views[:, 0]


def bare_forward(model: Method, loader: Loader, options: AttentionPass) -> list[Tensor]:
    """Loader, normalisation and ``encoder.features`` in eval mode without gradient: the features of each batch."""
    with torch.no_grad(), autocast(CPU, options.precision):
        return [model.encoder.features(images) for _, images in whole_images(model, loader, options)]
