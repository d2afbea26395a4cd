"""Providers of D^att other than the trained network, and the checks before training of what will be needed later."""

from __future__ import annotations

from pathlib import Path

import torch

from saga_fast.attention import check_attention
from saga_fast.attention.config import AttentionConfig
from saga_fast.checkpoint import load_model
from saga_fast.config import TrainConfig
from saga_fast.loaders import BoxTable, Source
from saga_fast.methods import Method
from saga_fast.models.modes import place_model


def check_provider(config: TrainConfig, model: Method, source: Source) -> None:
    """Check now what the first renewal, which may be days away, will need.

    Raises:
        SagaError: no such checkpoint, no such table or one of another data set, an encoder that cannot encode images of
            the config's sizes, or one that has no map for ``attention.score``.
    """
    for encoder in model.encoders:
        encoder.check_size(config.crop.size, *model.more_sizes)
    attention = config.attention
    if attention is None:
        return
    if attention.provider == "self":
        check_attention(model, config.attention_pass)
    if attention.provider_ckpt is not None:
        check_attention(load_model(attention.provider_ckpt), config.attention_pass)
    given_table(attention, source)


def classifier(ckpt: str, device: torch.device, *, channels_last: bool) -> Method:
    """The classifier whose attention replaces the trained network's, on its device."""
    return place_model(load_model(ckpt), device, channels_last=channels_last)


def given_table(attention: AttentionConfig, source: Source) -> BoxTable | None:
    """The given table that is used as D^att; None if the config names none.

    Raises:
        SagaError: see :meth:`BoxTable.open` and :meth:`BoxTable.check`.
    """
    if attention.provider_table is None:
        return None
    table = BoxTable.open(Path(attention.provider_table))
    table.check(source.fingerprint, len(source))
    return table
