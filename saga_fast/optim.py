"""Optimisers and learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import nn

MAX_EPOCHS = 10**6


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser of both phases; the learning rates are in the phases."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    """``lars`` is timm's, with trust coefficient 1e-3; ``adamw`` is best for runs of few steps."""
    momentum: float = 0.9
    """Momentum of SGD and LARS; first beta of AdamW."""
    weight_decay: float = 1e-4
    clip_gradient: float | None = None
    """Largest norm of a parameter's gradient; a larger gradient is scaled down to it (DINO). null: not clipped."""
    decay_norm_and_bias: bool = True
    """False: no weight decay and no LARS adaptation of batch norm and biases (SimCLR)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.clip_gradient is not None and not 0.0 < self.clip_gradient < math.inf:
            raise ValueError(f"clip_gradient must be positive and finite, got {self.clip_gradient}")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """The epochs and the learning rate of a training phase."""

    epochs: int = 0
    lr: float = 0.03
    """Peak learning rate, for the run's batch size: it is never rescaled."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """``cosine`` falls to ``final_lr`` at the phase's end, after each step; ``step`` multiplies at ``milestones``."""
    final_lr: float = 0.0
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0."""
    milestones: tuple[int, ...] = ()
    """Epochs of this phase after which the rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    weight_decay: tuple[float, float] | None = None
    """Weight decay at the phase's beginning and end, along a cosine in between (DINO); null: the optimiser's."""

    def __post_init__(self) -> None:
        if not 0 <= self.epochs <= MAX_EPOCHS:
            raise ValueError(f"epochs must be in 0 to {MAX_EPOCHS}, got {self.epochs}")
        if not 0.0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("final_lr", "gamma"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 up, got {getattr(self, name)}")
        if not 0.0 <= self.warmup_epochs <= max(self.epochs, 0):
            raise ValueError(f"warmup_epochs must be in [0, epochs], got {self.warmup_epochs}")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule step needs milestones")
        if self.weight_decay is not None and not all(0.0 <= decay < math.inf for decay in self.weight_decay):
            raise ValueError(f"weight_decay must be two numbers from 0 up, got {list(self.weight_decay)}")


def learning_rate(phase: PhaseConfig, epochs: float) -> float:
    """The learning rate after ``epochs`` epochs of the phase; fractions are steps within an epoch."""
    if epochs < phase.warmup_epochs:
        return phase.lr * epochs / phase.warmup_epochs
    if phase.schedule == "constant":
        return phase.lr
    if phase.schedule == "step":
        return phase.lr * phase.gamma ** sum(epochs >= milestone for milestone in phase.milestones)
    done = (epochs - phase.warmup_epochs) / max(phase.epochs - phase.warmup_epochs, 1e-12)
    return _cosine(phase.lr, phase.final_lr, done)


def weight_decay(config: OptimizerConfig, phase: PhaseConfig, epochs: float) -> float:
    """The weight decay after ``epochs`` epochs of the phase; fractions are steps within an epoch."""
    if phase.weight_decay is None:
        return config.weight_decay
    first, last = phase.weight_decay
    return _cosine(first, last, epochs / phase.epochs)


def _cosine(first: float, last: float, done: float) -> float:
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * min(done, 1.0)))


def set_schedules(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, phase: PhaseConfig, epochs: float
) -> float:
    """Set an optimiser's learning rate and weight decay for a step, and return the learning rate."""
    rate = learning_rate(phase, epochs)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.param_groups[0]["weight_decay"] = weight_decay(config, phase, epochs)  # the second group has none
    return rate


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float) -> None:
    """Scale each parameter's gradient down to the norm ``limit``, as DINO's code does; no wait for a GPU."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient, norm in zip(gradients, torch._foreach_norm(gradients), strict=True):
        gradient.mul_((limit / (norm + 1e-6)).clamp_max(1.0))  # torch's and DINO's 1e-6


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """A new optimiser of all trainable parameters; its learning rate is set at each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vectors = [p for p in trained if p.ndim <= 1 and not config.decay_norm_and_bias]
    matrices = [p for p in trained if p.ndim > 1 or config.decay_norm_and_bias]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": config.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if config.name == "lars":
        # timm adapts only groups with weight decay unless it is told to.
        groups[0]["always_adapt"] = True
        lars: torch.optim.Optimizer = Lars(groups, lr=1.0, momentum=config.momentum)
        return lars
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=1.0, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=1.0, momentum=config.momentum)
