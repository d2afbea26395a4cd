"""The methods by name. Adding one is a file here, a row in this table and a config."""

from __future__ import annotations

from saga_fast.encoder import EncoderConfig
from saga_fast.errors import SagaError
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.methods.mocov2 import MoCoV2
from saga_fast.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "mocov2": MoCoV2,
}

__all__ = ["METHODS", "Method", "MethodConfig", "StepOutput", "build_method"]


def build_method(config: MethodConfig, encoder: EncoderConfig) -> Method:
    """A method with fresh weights from torch's generator.

    Args:
        config: a method's own config, ``METHODS[name].Config(...)``; its ``name`` picks the method.
        encoder: the backbone.

    Raises:
        SagaError: no method of that name, or an encoder that cannot be built.
    """
    if config.name not in METHODS:
        raise SagaError(f"no such method: {config.name!r}, have {', '.join(METHODS)}")
    return METHODS[config.name](config, encoder)
