"""The methods by name. Adding one is a file here, a row in this table and a config."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.methods.bank import BankMethod, num_bank_rows
from saga_fast.methods.cmc import CMC
from saga_fast.methods.insdis import InsDis
from saga_fast.methods.invspread import InvSpread
from saga_fast.methods.method import Branch, Method, MethodConfig, StepOutput, ViewGroup
from saga_fast.methods.moco import MoCo
from saga_fast.methods.mocov2 import MoCoV2
from saga_fast.methods.pirl import PIRL
from saga_fast.methods.simclr import SimCLR
from saga_fast.methods.supervised import Supervised
from saga_fast.models.encoder import EncoderConfig

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "mocov2": MoCoV2,
    "insdis": InsDis,
    "pirl": PIRL,
    "cmc": CMC,
    "invspread": InvSpread,
    "supervised": Supervised,
}

__all__ = [
    "METHODS",
    "Branch",
    "Method",
    "MethodConfig",
    "StepOutput",
    "ViewGroup",
    "build_method",
    "num_bank_rows",
]


def build_method(
    config: MethodConfig,
    encoder: EncoderConfig,
    *,
    num_images: int | None = None,
    labels: Tensor | None = None,
    parts: int = 1,
) -> Method:
    """A method with fresh weights from torch's generator.

    Args:
        config: a method's own config, ``METHODS[name].Config(...)``; its ``name`` picks the method.
        encoder: the backbone.
        num_images: images in the data set; needed by methods with a memory bank only.
        labels: (num_images,) int64; needed to train a classifier only.
        parts: see :meth:`Method.in_parts`.

    Raises:
        SagaError: no method of that name, an encoder that cannot be built, no ``num_images`` for a memory bank, or
            more classes than the classifier has.
    """
    if config.name not in METHODS:
        raise SagaError(f"no such method: {config.name!r}, have {', '.join(METHODS)}")
    kind: Any = METHODS[config.name]  # each takes its own config
    has_bank = issubclass(kind, BankMethod)
    if has_bank and (num_images is None or num_images < 1):
        raise SagaError(
            f"method {config.name} keeps a memory bank with a row per image:"
            f" build_method needs num_images, got {num_images}"
        )
    needed: tuple[Any, ...] = (num_images,) if has_bank else (labels,) if kind is Supervised else ()
    model: Method = kind(config, encoder, *needed)
    model.parts = parts
    return model
