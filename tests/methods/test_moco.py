"""MoCo's loss, momentum encoder and queue against the paper, in plain Python loops, and against lightly."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from method_loops import Rows, assert_gradient, dot, gradient_of_bias, units
from method_loops import build as build_method
from method_loops import random_views as random_views_of
from torch import Tensor, nn

from saga_fast.methods import METHODS
from saga_fast.methods.moco import MoCo, MoCoConfig
from saga_fast.optim import OptimizerConfig, build_optimizer


def build(seed: int = 0, **fields: Any) -> MoCo:
    model = build_method("moco", seed=seed, **{"queue_size": 10, "projection_dim": 6, **fields})
    assert isinstance(model, MoCo)
    return model


def random_views(batch: int, seed: int = 1) -> Tensor:
    return random_views_of(batch, 2, seed=seed)


def info_nce_loops(queries: Rows, keys: Rows, queue: Rows, temperature: float) -> float:
    """He et al. 2020, Eq. 1: -log(exp(q.k+ / tau) / (exp(q.k+ / tau) + sum over the queue of exp(q.k / tau)))."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(dot(query, key) / temperature)
        negatives = sum(math.exp(dot(query, negative) / temperature) for negative in queue)
        total -= math.log(positive / (positive + negatives))
    return total / len(queries)


def test_loss_is_info_nce_of_view_0_against_view_1() -> None:
    model = build(temperature=0.3).eval()
    with torch.no_grad():
        for parameter in model.key_projector.parameters():
            parameter.mul_(1.5).add_(0.1)  # so that swapping the views, or the encoders, changes the loss
    views = random_views(5)
    output = model(views, torch.arange(5))
    queries = units(torch.cat([model.projector(model.encoder(view[None])) for view in views[:, 0]]))
    keys = units(torch.cat([model.key_projector(model.key_encoder(view[None])) for view in views[:, 1]]))
    expected = info_nce_loops(queries, keys, model.queue.tolist(), 0.3)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    similarity = sum(dot(q, k) for q, k in zip(queries, keys, strict=True)) / 5
    assert output.positive_similarity.item() == pytest.approx(similarity, rel=1e-5)
    assert not output.positive_similarity.requires_grad


def test_gradient_is_that_of_the_equation() -> None:
    """Central differences of the loops over the query projector's last bias, which every row passes through."""
    model = build(temperature=0.3).eval()
    views = random_views(4)
    bias = model.get_parameter("projector.bias")
    (gradient,) = torch.autograd.grad(model(views, torch.arange(4)).loss, bias)
    with torch.no_grad():
        z = model.projector(model.encoder(views[:, 0]))
        keys = units(model.key_projector(model.key_encoder(views[:, 1])))
    queue = model.queue.tolist()
    expected = gradient_of_bias(lambda rows: info_nce_loops(units(rows), keys, queue, 0.3), z)
    assert_gradient(gradient, expected)


def test_loss_and_gradient_are_lightlys() -> None:
    """lightly's NTXentLoss with a memory bank is MoCo's loss; its bank is filled with our queue."""
    model = build(temperature=0.1, queue_size=64).eval()
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(64, 6))
    criterion.memory_bank.bank = model.queue.clone()
    views = random_views(8)
    output = model(views, torch.arange(8))
    with torch.no_grad():
        keys = model.key_projector(model.key_encoder(views[:, 1]))
    expected = criterion(model.projector(model.encoder(views[:, 0])), keys)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=0.0)
    weights = [model.get_parameter(name) for name in ("projector.weight", "encoder.backbone.conv1.weight")]
    gradients = (torch.autograd.grad(loss, weights, retain_graph=True) for loss in (output.loss, expected))
    for own, other in zip(*gradients, strict=True):
        assert_gradient(own, other.double())


def test_logits_stay_float32_under_autocast() -> None:
    """Encoder outputs are swapped for constants, so that only the loss's own arithmetic can differ."""
    model = build(temperature=0.07, queue_size=64, projection_dim=16).eval()
    model.encoder = model.key_encoder = nn.Identity()  # type: ignore[assignment]
    model.projector = model.key_projector = nn.Identity()
    z = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(z, torch.arange(8)).loss
    torch.testing.assert_close(mixed, model(z, torch.arange(8)).loss, rtol=1e-5, atol=0.0)


def test_key_encoder_starts_as_a_copy() -> None:
    model = build()
    for own, followed in ((model.key_encoder, model.encoder), (model.key_projector, model.projector)):
        state = followed.state_dict()
        assert state.keys() == own.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in own.state_dict().items())


def test_average_moves_before_the_keys_are_made() -> None:
    """key <- m key + (1 - m) query, of the parameters, then the keys (He et al. 2020, Algorithm 1)."""
    model = build(momentum=0.75)
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.projector.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    views = random_views(6)
    unmoved = copy.deepcopy(model)
    model(views, torch.arange(6))

    for kind in ("encoder", "projector"):
        module = getattr(model, f"key_{kind}")
        for name, parameter in module.named_parameters():
            expected = 0.75 * before[f"key_{kind}.{name}"] + 0.25 * before[f"{kind}.{name}"]
            torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)
    for name, parameter in [*model.encoder.named_parameters(prefix="encoder")]:
        assert torch.equal(parameter, before[name])

    model.after_step()
    with torch.no_grad():
        keys = F.normalize(model.key_projector(model.key_encoder(views[:, 1])), dim=1)
        stale = F.normalize(unmoved.key_projector(unmoved.key_encoder(views[:, 1])), dim=1)
    torch.testing.assert_close(model.queue[:6], keys)
    assert not torch.allclose(model.queue[:6], stale, atol=1e-3)


def test_batch_norm_statistics_are_the_key_encoders_own() -> None:
    model = build(momentum=0.0)  # the parameters become the query encoder's at once: all that is left are the buffers
    for name, buffer in model.encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(5.0)
    expected = copy.deepcopy(model.key_encoder).train()
    views = random_views(6)
    model(views, torch.arange(6))
    with torch.no_grad():
        expected(views[:, 1])
    buffers = dict(model.key_encoder.named_buffers())
    assert any(name.endswith("running_mean") for name in buffers)
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)
    assert int(buffers["backbone.bn1.num_batches_tracked"]) == 1


def test_nothing_moves_in_eval_mode() -> None:
    model = build(momentum=0.5).eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(model.state_dict())
    model(random_views(4), torch.arange(4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_queue_after_three_updates() -> None:
    """4 + 4 + 4 keys in 10 places: the third update goes round the end."""
    model = build()
    start = model.queue.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(10))
    expected, pointer = [row.clone() for row in start], 0
    for step in range(3):
        views = random_views(4, seed=step)
        model(views, torch.arange(4))
        assert torch.equal(model.queue, torch.stack(expected))  # the step's own keys are not yet among its negatives
        model.after_step()
        with torch.no_grad():
            keys = F.normalize(model.key_projector(model.key_encoder(views[:, 1])), dim=1)
        for key in keys:
            expected[pointer % 10] = key
            pointer += 1
        torch.testing.assert_close(model.queue, torch.stack(expected))
        expected = [row.clone() for row in model.queue]
        assert int(model.queue_pointer) == pointer % 10
    assert int(model.queue_pointer) == 2
    assert not (model.queue == start).all(1).any()


@pytest.mark.parametrize("batch", [3, 7, 8])
def test_batch_larger_than_the_queue(batch: int) -> None:
    model = build(queue_size=3)
    views = random_views(batch)
    for _ in range(2):
        model(views, torch.arange(batch))
        model.after_step()
    with torch.no_grad():
        keys = F.normalize(model.key_projector(model.key_encoder(views[:, 1])), dim=1)
    torch.testing.assert_close(model.queue, keys[-3:])  # its latest keys, pointer back at the start
    assert int(model.queue_pointer) == 0


def test_state_dict_holds_queue_and_pointer() -> None:
    model = build()
    model(random_views(7), torch.arange(7))
    model.after_step()
    state = copy.deepcopy(model.state_dict())
    assert torch.equal(state["queue"], model.queue)
    assert int(state["queue_pointer"]) == 7
    other = build(seed=5)
    other.load_state_dict(state)
    losses = []
    for each in (model, other):
        for step in range(2):
            losses.append(each(random_views(7, seed=10 + step), torch.arange(7)).loss.item())
            each.after_step()
    assert losses[:2] == losses[2:]
    assert torch.equal(model.queue, other.queue)
    assert torch.equal(model.queue_pointer, other.queue_pointer)


def test_no_gradient_reaches_keys_and_queue() -> None:
    model = build()
    model(random_views(6), torch.arange(6)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(("encoder.", "projector."))}
    assert not model.queue.requires_grad
    assert all(not parameter.requires_grad for parameter in model.key_encoder.parameters())
    assert all(not parameter.requires_grad for parameter in model.key_projector.parameters())
    optimizer = build_optimizer(OptimizerConfig(), model)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for name, parameter in model.named_parameters() if name in trained}


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.0), ("temperature", -1.0), ("queue_size", 0), ("momentum", 1.0), ("momentum", -0.1)],
)
def test_config_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got {value}"):
        MoCoConfig(**{field: value})  # type: ignore[arg-type]


def test_build_method_makes_what_is_registered() -> None:
    model = build()
    assert type(model) is METHODS["moco"]
    assert (model.method, model.num_views) == ("moco", 2)
    assert isinstance(model.projector, nn.Linear)
    assert (MoCoConfig().temperature, MoCoConfig().queue_size, MoCoConfig().momentum) == (0.07, 65536, 0.999)
