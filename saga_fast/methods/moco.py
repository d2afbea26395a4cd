"""MoCo (He et al., "Momentum contrast for unsupervised visual representation learning", CVPR 2020)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.methods.heads import check_count, check_temperature, check_widths
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.models.encoder import Encoder, EncoderConfig
from saga_fast.models.precision import autocast
from saga_fast.models.sync_batchnorm import is_local_batchnorm
from saga_fast.runtime.distributed import gather, local_rows, world_size


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(MethodConfig):
    """MoCo's hyperparameters (section 3.3)."""

    name: str = "moco"
    temperature: float = 0.07
    projection_dim: int = 128
    queue_size: int = 65536
    momentum: float = 0.999
    """Momentum of the key encoder's moving average."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_widths(self.projection_dim, None)
        check_count("queue_size", self.queue_size)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    def new_projector(self, dim: int) -> nn.Module:
        """A new projector g for an encoder with ``dim`` outputs."""
        return nn.Linear(dim, self.projection_dim)


class MoCo(Method):
    """A query attracts its key and repels a queue of earlier keys; the key encoder is an average of the query encoder.

    View 0 is the query, view 1 the key (one-directional loss). The key encoder is updated before the keys are computed,
    and the keys enter the queue after the step, as in the official code.
    """

    Config: ClassVar[type[MethodConfig]] = MoCoConfig
    queue: Tensor
    queue_pointer: Tensor

    def __init__(self, config: MoCoConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, Encoder(encoder))
        self.temperature, self.momentum = config.temperature, config.momentum
        self.projector = config.new_projector(self.encoder.dim)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.projection_dim), dim=1))
        self.register_buffer("queue_pointer", torch.zeros((), dtype=torch.int64))
        self._keys: Tensor | None = None

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:  # noqa: ARG002 - no bank
        """See :meth:`Method.forward`."""
        query = F.normalize(self.in_parts(views[:, 0], self.encoder, self.projector).float(), dim=1)
        with torch.no_grad():
            if self.training:
                self._update_key_encoder()
            key = self._keys_of(views[:, 1])
        positive = (query * key).sum(1, keepdim=True)
        with autocast(query.device, "fp32"):  # 16 bits are for the networks, not for the loss
            negative = query @ self.queue.T
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        self._keys = gather(key)
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return StepOutput(F.cross_entropy(logits, target), positive.detach().mean())

    @torch.no_grad()
    def after_step(self) -> None:
        """Replace the oldest keys of the queue with the step's keys, wrapping around its end."""
        assert self._keys is not None, "after_step without a forward"
        size = len(self.queue)
        keys = self._keys[-size:]
        slots = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue[slots] = keys
        self.queue_pointer.copy_((self.queue_pointer + len(keys)) % size)
        self._keys = None

    def _keys_of(self, views: Tensor) -> Tensor:
        """Keys (B, D) of views (B, 3, S, S).

        Where batch norm is not synchronised, the images are shuffled over all processes first, so that batch statistics
        do not reveal a query's key (section 3.3, "Shuffling BN").
        """
        shuffling = self.training and world_size() > 1 and any(map(is_local_batchnorm, self.key_encoder.modules()))
        if shuffling:
            order = torch.randperm(world_size() * len(views), device=views.device)  # the same in every process
            views = gather(views)[local_rows(order)]
        keys = F.normalize(self.in_parts(views, self.key_encoder, self.key_projector).float(), dim=1)
        return local_rows(gather(keys)[order.argsort()]) if shuffling else keys

    def _update_key_encoder(self) -> None:
        """Move the key encoder's parameters towards the query encoder's; batch-norm statistics are not averaged."""
        keys: list[Tensor] = [*self.key_encoder.parameters(), *self.key_projector.parameters()]
        queries: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(keys, queries, 1.0 - self.momentum)
