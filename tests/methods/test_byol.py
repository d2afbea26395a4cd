"""BYOL's loss, gradients, target and steps against the paper's equations in float64 loops, and against lightly."""

import copy
from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from method_loops import assert_gradient, build, random_views
from method_oracles import (
    SGD,
    Rows,
    Weights,
    assert_equal,
    average,
    batch_norm,
    encode,
    gradients_of,
    half_cosine,
    linear,
    replace_encoder,
    unit,
    weights_of,
)
from torch import Tensor, nn

from saga_fast.methods import METHODS, Progress
from saga_fast.methods.byol import BYOL, BYOLConfig
from saga_fast.optim import OptimizerConfig, build_optimizer

STEPS, LR, DECAY, MOMENTUM = 3, 0.1, 0.01, 0.9


def make(seed: int = 0, **fields: Any) -> BYOL:
    model = build("byol", seed=seed, **{"projection_dim": 6, "hidden_dim": 10, **fields})
    assert isinstance(model, BYOL)
    return model


def mlp(weights: Weights, prefix: str, rows: Rows) -> list[Tensor]:
    """Section 3.3: a linear layer, batch norm, ReLU, a linear layer."""
    hidden = batch_norm(weights, f"{prefix}.1", [linear(weights, f"{prefix}.0", row) for row in rows])
    return [linear(weights, f"{prefix}.3", torch.where(row > 0, row, torch.zeros_like(row))) for row in hidden]


def loss_loops(weights: Weights, views: Tensor) -> Tensor:
    """Section 3.1: the sum of both directions' mean ||q(z) / |q(z)| - z' / |z'| ||^2 (Eq. 2)."""
    total = torch.zeros((), dtype=torch.float64)
    for view in (0, 1):
        online = mlp(weights, "predictor", mlp(weights, "projector", encode(weights, "encoder", views[:, view])))
        targets = mlp(weights, "target_projector", encode(weights, "target_encoder", views[:, 1 - view]))
        for prediction, target in zip(online, targets, strict=True):
            total = total + ((unit(prediction) - unit(target)) ** 2).sum() / len(views)
    return total


def test_three_steps_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients, the optimiser's weights and the target's, in float64, to 1e-10."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    model = make(momentum=MOMENTUM).train()
    replace_encoder(model, "encoder", "target_encoder")
    optimizer = build_optimizer(OptimizerConfig(weight_decay=DECAY), model)
    for group in optimizer.param_groups:
        group["lr"] = LR
    weights, oracle = weights_of(model), SGD(DECAY)
    for step in range(STEPS):
        views = random_views(5, 2, seed=step, side=4).double()
        model.progress = Progress(epochs=0.0, phase=step / STEPS)
        output = model(views, torch.arange(5))
        optimizer.zero_grad()
        output.loss.backward()
        loss = loss_loops(weights, views)
        assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        gradients = gradients_of(loss, weights)
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert found.keys() == gradients.keys()
        assert_equal(found, gradients)
        optimizer.step()
        model.after_step()
        oracle.step(weights, gradients, LR)
        pairs = {"target_encoder": "encoder", "target_projector": "projector"}
        average(weights, pairs, half_cosine(MOMENTUM, 1.0, step, STEPS))
        assert_equal(model.state_dict(), weights)
    assert not torch.equal(model.get_parameter("target_projector.0.weight"), model.get_parameter("projector.0.weight"))


def test_loss_and_gradient_are_lightlys() -> None:
    """lightly's example sums half of the two negative cosines: ours is 4 + 4 of that."""
    model = make().train()
    views = random_views(8, 2)
    other = copy.deepcopy(model)
    output = model(views, torch.arange(8))
    criterion = NegativeCosineSimilarity()
    predictions = [other.predictor(other.projector(other.encoder(views[:, view]))) for view in (0, 1)]
    with torch.no_grad():
        targets = [other.target_projector(other.target_encoder(views[:, view])) for view in (0, 1)]
    half = 0.5 * (criterion(predictions[0], targets[1]) + criterion(predictions[1], targets[0]))
    expected = 4.0 + 4.0 * half
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=1e-6)
    assert output.positive_similarity.item() == pytest.approx(-half.item(), rel=1e-5)
    for name in ("predictor.3.weight", "encoder.backbone.conv1.weight"):
        (own,) = torch.autograd.grad(output.loss, model.get_parameter(name), retain_graph=True)
        (lightlys,) = torch.autograd.grad(expected, other.get_parameter(name), retain_graph=True)
        assert_gradient(own, lightlys.double())


def test_views_have_batch_statistics_of_their_own() -> None:
    """As in the official code: a view's projection does not depend on the other view."""
    model = make().train()
    projections: list[Tensor] = []
    model.target_projector.register_forward_hook(lambda *call: projections.append(call[2]))
    views, others = random_views(6, 2), random_views(6, 1, seed=2)
    for second in (views[:, 1], others[:, 0]):
        model(torch.stack([views[:, 0], second], 1), torch.arange(6))
    before, first, after, again = projections
    torch.testing.assert_close(again, first)
    assert not torch.allclose(after, before, atol=1e-3)


def test_nothing_reaches_the_target() -> None:
    model = make().train()
    model(random_views(6, 2), torch.arange(6)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    online = ("encoder.", "projector.", "predictor.")
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(online)}
    before = copy.deepcopy(model.target_encoder.state_dict())
    model.eval()
    model(random_views(6, 2), torch.arange(6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.target_encoder.state_dict().items())


def test_heads_are_the_papers() -> None:
    model = build("byol")
    assert isinstance(model, BYOL)
    for head, width in ((model.projector, model.encoder.dim), (model.predictor, 256), (model.target_projector, 16)):
        assert isinstance(head, nn.Sequential)
        first, norm, _, last = head
        assert isinstance(first, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and isinstance(last, nn.Linear)
        assert (first.in_features, first.out_features, last.in_features, last.out_features) == (width, 4096, 4096, 256)
    assert type(model) is METHODS["byol"] and model.sync_batchnorm
    assert BYOLConfig().momentum == 0.996


@pytest.mark.parametrize(("field", "value"), [("momentum", 1.0), ("projection_dim", 0), ("hidden_dim", 0)])
def test_config_refuses(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got {value}"):
        BYOLConfig(**{field: value})
