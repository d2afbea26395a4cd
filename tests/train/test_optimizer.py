"""Learning rates at points computed by hand, and what each optimiser does to which parameter."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from saga_fast.methods import build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.optim import (
    OptimizerConfig,
    PhaseConfig,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_schedules,
)


@pytest.mark.parametrize(
    ("phase", "rates"),
    [
        (PhaseConfig(epochs=5, lr=0.3), {0: 0.3, 2.5: 0.3, 5: 0.3}),
        (PhaseConfig(epochs=10, lr=0.4, warmup_epochs=2), {0: 0.0, 0.5: 0.1, 1: 0.2, 1.5: 0.3, 2: 0.4, 9: 0.4}),
        (
            PhaseConfig(epochs=8, lr=0.4, schedule="cosine"),
            {0: 0.4, 2: 0.2 + 0.2 * math.sqrt(0.5), 4: 0.2, 6: 0.2 - 0.2 * math.sqrt(0.5), 8: 0.0},
        ),
        (PhaseConfig(epochs=6, lr=0.5, schedule="cosine", final_lr=0.1), {0: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 6: 0.1}),
        (
            PhaseConfig(epochs=12, lr=0.6, schedule="cosine", warmup_epochs=4),
            {0: 0.0, 1: 0.15, 3: 0.45, 4: 0.6, 8: 0.3, 12: 0.0},
        ),
        (
            PhaseConfig(epochs=200, lr=0.03, schedule="step", milestones=(120, 160)),
            {0: 0.03, 119.99: 0.03, 120: 0.003, 159: 0.003, 160: 0.0003, 200: 0.0003},
        ),
        (PhaseConfig(epochs=9, lr=0.8, schedule="step", milestones=(3, 6), gamma=0.5), {2: 0.8, 3: 0.4, 7: 0.2}),
        (PhaseConfig(epochs=3, lr=0.2, schedule="cosine", warmup_epochs=3), {0: 0.0, 1.5: 0.1}),
    ],
    ids=["constant", "warm-up", "cosine", "cosine to final_lr", "warm-up and cosine", "step", "gamma", "all warm-up"],
)
def test_learning_rate(phase: PhaseConfig, rates: dict[float, float]) -> None:
    for epochs, rate in rates.items():
        assert learning_rate(phase, epochs) == pytest.approx(rate, rel=1e-9, abs=1e-12), epochs


def test_weight_decay() -> None:
    """Along a cosine over the phase where it has a pair, else the optimiser's; vectors may have none."""
    phase = PhaseConfig(epochs=8, lr=0.3, weight_decay=(0.04, 0.4))
    config = OptimizerConfig(name="adamw", weight_decay=0.02, decay_norm_and_bias=False)
    optimizer = build_optimizer(config, Pair())
    for epochs, decay in {0: 0.04, 2: 0.22 - 0.18 * math.sqrt(0.5), 4: 0.22, 8: 0.4}.items():
        assert set_schedules(optimizer, config, phase, epochs) == 0.3
        assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(decay, rel=1e-12)
        assert optimizer.param_groups[1]["weight_decay"] == 0.0
        assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    set_schedules(optimizer, config, PhaseConfig(epochs=2), 1.5)
    assert optimizer.param_groups[0]["weight_decay"] == 0.02


def test_clipping_is_per_parameter() -> None:
    model = Pair()
    gradient(model.matrix).mul_(2.0 / gradient(model.matrix).norm())
    gradient(model.vector).mul_(0.5 / gradient(model.vector).norm())
    matrix, vector = gradient(model.matrix).clone(), gradient(model.vector).clone()
    clip_gradients(model, 0.8)
    torch.testing.assert_close(gradient(model.matrix), 0.4 * matrix)
    assert torch.equal(gradient(model.vector), vector)
    gradient(model.vector).zero_()
    clip_gradients(model, 0.8)
    assert not gradient(model.vector).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_decay": (0.04, -0.4)}, r"weight_decay must be two numbers from 0 up, got \[0.04, -0.4\]"),
        ({"epochs": -1}, "epochs must be in 0 to 1000000, got -1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": -0.1}, "lr must be positive, got -0.1"),
        ({"epochs": 3, "warmup_epochs": 4}, r"warmup_epochs must be in \[0, epochs\], got 4"),
        ({"epochs": 3, "warmup_epochs": -1}, r"warmup_epochs must be in \[0, epochs\], got -1"),
        ({"schedule": "step"}, "schedule step needs milestones"),
    ],
)
def test_phase_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhaseConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"weight_decay": -1e-4}, "weight_decay must not be negative, got -0.0001"),
        ({"clip_gradient": 0.0}, "clip_gradient must be positive and finite, got 0.0"),
    ],
)
def test_optimizer_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def method() -> nn.Module:
    torch.manual_seed(0)
    encoder = EncoderConfig(name="resnet18", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
    return build_method(SimCLRConfig(projection_dim=12), encoder)


OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "lars": torch.optim.Optimizer}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_group_of_all_trained_parameters(name: Any) -> None:
    model = method()
    frozen = next(model.parameters()).requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.02), model)
    assert isinstance(optimizer, OPTIMIZERS[name])
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.02
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()} - {id(frozen)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norm_and_bias_in_a_group_without_decay(name: Any) -> None:
    model = method()
    config = OptimizerConfig(name=name, weight_decay=0.02, decay_norm_and_bias=False)
    matrices, vectors = build_optimizer(config, model).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)
    own = {
        id(parameter)
        for module in model.modules()
        for kind, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.BatchNorm2d) or kind == "bias"
    }
    assert {id(p) for p in vectors["params"]} == own
    assert {id(p) for p in matrices["params"]} == {id(p) for p in model.parameters()} - own
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


class Pair(nn.Module):
    """A matrix and a vector with gradients at hand."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.vector = nn.Parameter(torch.randn(5, generator=generator))
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def step(model: Pair, config: OptimizerConfig, *, lr: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """What one step adds to the matrix and to the vector, and their gradients stay."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(config, model)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    matrix, vector = (after.detach() - old for after, old in zip(model.parameters(), before, strict=True))
    return matrix, vector


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_sgd_decays_what_it_should() -> None:
    model = Pair()
    old = model.matrix.detach().clone()
    matrix, vector = step(model, OptimizerConfig(weight_decay=0.1, decay_norm_and_bias=False))
    torch.testing.assert_close(matrix, -0.3 * (gradient(model.matrix) + 0.1 * old))
    torch.testing.assert_close(vector, -0.3 * gradient(model.vector))


def lars_update(weight: torch.Tensor, gradient: torch.Tensor, weight_decay: float) -> torch.Tensor:
    """You et al. 2017, Algorithm 1, first step: local rate 1e-3 |w| / (|g| + wd |w|) times (g + wd w)."""
    size, slope = float(weight.norm()), float(gradient.norm())
    return 1e-3 * size / (slope + weight_decay * size) * (gradient + weight_decay * weight)


def test_lars_adapts_matrices_and_leaves_vectors() -> None:
    model = Pair()
    old = model.matrix.detach().clone()
    matrix, vector = step(model, OptimizerConfig(name="lars", weight_decay=0.1, decay_norm_and_bias=False))
    torch.testing.assert_close(matrix, -0.3 * lars_update(old, gradient(model.matrix), 0.1), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(vector, -0.3 * gradient(model.vector))


def test_lars_ignores_the_size_of_a_matrixs_gradient() -> None:
    updates = []
    for factor in (1.0, 1000.0):
        model = Pair()
        for parameter in model.parameters():
            gradient(parameter).mul_(factor)
        updates.append(step(model, OptimizerConfig(name="lars", weight_decay=1e-6, decay_norm_and_bias=False)))
    (matrix, vector), (large_matrix, large_vector) = updates
    torch.testing.assert_close(large_matrix, matrix, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(large_vector, 1000.0 * vector, rtol=1e-4, atol=1e-6)


def test_lars_adapts_without_weight_decay() -> None:
    model = Pair()
    old = model.matrix.detach().clone()
    matrix, vector = step(model, OptimizerConfig(name="lars", weight_decay=0.0, decay_norm_and_bias=False))
    torch.testing.assert_close(matrix, -0.3 * lars_update(old, gradient(model.matrix), 0.0), rtol=1e-4, atol=2e-7)
    torch.testing.assert_close(vector, -0.3 * gradient(model.vector))


def test_adamw_takes_momentum_as_its_first_beta() -> None:
    (group,) = build_optimizer(OptimizerConfig(name="adamw", momentum=0.8), Pair()).param_groups
    assert group["betas"] == (0.8, 0.999)
