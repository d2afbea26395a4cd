"""Attention boxes from a model of another project, without a saga-fast checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.methods import Method
from saga_fast.models.encoder import Activations, Encoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Function = Callable[[Tensor], Tensor]


class FeatureModel(Method):
    """Any module as a model for :func:`saga_fast.attention.build_box_table` and for evaluation; it is not trained.

    ``head`` is differentiated (Eq. 2), so that ``features`` should return the last map that all of z depends on: the
    input of the pooling, or for a vision transformer that pools its class token the tokens that enter the last block.

    Args:
        module: has the parameters, and the eval mode.
        features: normalised images (B, 3, S, S) -> A: a map (B, C, u, v), or a vision transformer's tokens
            (B, prefix_tokens + u u, C), class token first.
        head: what ``features`` returns -> z (B, D), each row a function of its image alone.
        mean, std: of the input, per channel, for pixel values in [0, 1]; default: ImageNet's.
        prefix_tokens: number of tokens before those of the patches; None: ``features`` returns a map.

    Raises:
        SagaError: ``features`` returns neither, when it is called.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        features: Function,
        head: Function,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        prefix_tokens: int | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not Method.__init__: there is no config
        self.method = type(module).__name__
        self.encoder: Encoder = _ModuleEncoder(module, features, head, prefix_tokens)
        self.encoder.mean, self.encoder.std = mean, std
        self.projector = nn.Identity()
        self.train(module.training)


class _ModuleEncoder(Encoder):
    """The two functions as an encoder, whose pooling goes on to z."""

    can_compile: ClassVar[bool] = False  # functions may refer to the module itself, not to a copy

    def __init__(self, module: nn.Module, features: Function, head: Function, prefix_tokens: int | None) -> None:
        nn.Module.__init__(self)
        self.module, self._features, self._head, self._prefix = module, features, head, prefix_tokens
        self._name = type(module).__name__
        self.in_channels, self.compiled = 3, None
        self.is_transformer, self.is_global_average, self.has_class_attention = prefix_tokens is not None, False, False

    def activations(self, x: Tensor) -> Activations:
        """See :meth:`Encoder.activations`."""
        returned, count = self._features(x), self._prefix
        if returned.ndim == 4 and count is None:
            return Activations(returned)
        side = math.isqrt(max(0, returned.shape[1] - (count or 0)))
        if returned.ndim != 3 or count is None or side * side + count != returned.shape[1]:
            wanted = "a map (B, C, u, v)" if count is None else f"tokens (B, {count} + u * u, C)"
            raise SagaError(
                f"features of {self._name} returned {tuple(returned.shape)}, not {wanted}: choose another layer or set"
                " prefix_tokens"
            )
        patches = returned[:, count:].transpose(1, 2)
        return Activations(patches.reshape(*patches.shape[:2], side, side), returned[:, :count])

    def pool(self, features: Tensor, prefix: Tensor | None = None) -> Tensor:
        """See :meth:`Encoder.pool`."""
        if prefix is None:
            return self._head(features)
        return self._head(torch.cat([prefix.to(features.dtype), features.flatten(2).transpose(1, 2)], 1))

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Encoder.forward`."""
        return self._head(self._features(x))

    def check_size(self, *sides: int) -> None:
        """Nothing is known of a module's sizes."""
