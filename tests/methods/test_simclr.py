"""SimCLR's loss against the paper's equation in plain Python loops."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.methods import METHODS, Method, MethodConfig, build_method
from saga_fast.methods.simclr import SimCLRConfig, nt_xent
from saga_fast.models.encoder import EncoderConfig

ENCODER = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})

Rows = Sequence[Sequence[float]]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def nt_xent_loops(z: Rows, temperature: float) -> float:
    """Chen et al. 2020, Eq. 1 and Algorithm 1: rows 2k and 2k + 1 are the views of image k.

    l(i, j) = -log(exp(s_ij / tau) / sum over k != i of exp(s_ik / tau)); the mean of l(2k, 2k + 1) and l(2k + 1, 2k).
    """

    def loss(i: int, j: int) -> float:
        others = sum(math.exp(cosine(z[i], z[k]) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(cosine(z[i], z[j]) / temperature) / others)

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(len(z) // 2)) / len(z)


def central_differences(z: Rows, temperature: float, step: float = 1e-6) -> Tensor:
    gradient = torch.zeros(len(z), len(z[0]), dtype=torch.float64)
    for i, row in enumerate(z):
        for d, value in enumerate(row):
            above, below = ([[*r] for r in z] for _ in range(2))
            above[i][d], below[i][d] = value + step, value - step
            gradient[i, d] = (nt_xent_loops(above, temperature) - nt_xent_loops(below, temperature)) / (2 * step)
    return gradient


def random_rows(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("images", "dim"), [(1, 3), (2, 1), (4, 5), (7, 12)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_loss_and_gradient(images: int, dim: int, temperature: float) -> None:
    z = random_rows(2 * images, dim).requires_grad_()
    output = nt_xent(F.normalize(z, dim=1), temperature)
    (gradient,) = torch.autograd.grad(output.loss, z)

    rows = z.detach().tolist()
    assert output.loss.item() == pytest.approx(nt_xent_loops(rows, temperature), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient, central_differences(rows, temperature), rtol=1e-5, atol=1e-7)
    pairs = [cosine(rows[2 * k], rows[2 * k + 1]) for k in range(images)]
    assert output.positive_similarity.item() == pytest.approx(sum(pairs) / images)
    assert not output.positive_similarity.requires_grad


def test_loss_and_gradient_in_float32() -> None:
    z64 = random_rows(64, 128)
    z = z64.float().requires_grad_()
    output = nt_xent(F.normalize(z, dim=1), 0.1)
    (gradient,) = torch.autograd.grad(output.loss, z)
    exact = z64.clone().requires_grad_()
    (expected,) = torch.autograd.grad(nt_xent(F.normalize(exact, dim=1), 0.1).loss, exact)
    assert output.loss.item() == pytest.approx(nt_xent_loops(z64.tolist(), 0.1), rel=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_loss_stays_float32_under_autocast() -> None:
    z = F.normalize(random_rows(32, 16).float(), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(z, 0.1).loss
    torch.testing.assert_close(mixed, nt_xent(z, 0.1).loss, rtol=1e-5, atol=0.0)


def build(**fields: Any) -> Method:
    torch.manual_seed(0)
    return build_method(SimCLRConfig(**fields), ENCODER)


def test_forward_pairs_the_views_of_an_image() -> None:
    """Eval mode: each row is the network's output on one view alone, so that only the pairing is at stake."""
    model = build(temperature=0.3).eval()
    views = torch.randn(5, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    output = model(views, torch.arange(5))
    z = [model.projector(model.encoder(views[i, v][None]))[0].tolist() for i in range(5) for v in range(2)]
    assert output.loss.item() == pytest.approx(nt_xent_loops(z, 0.3), rel=1e-5)
    similarity = sum(cosine(z[2 * i], z[2 * i + 1]) for i in range(5)) / 5
    assert output.positive_similarity.item() == pytest.approx(similarity, rel=1e-5)


def test_gradient_reaches_every_parameter() -> None:
    model = build(temperature=0.2)
    views = torch.randn(8, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model(views, torch.arange(8)).loss.backward()
    model.after_step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for name in ("encoder.backbone.conv1.weight", "projector.0.weight", "projector.2.bias"):
        assert bool(model.get_parameter(name).grad.any())  # type: ignore[union-attr]


@pytest.mark.parametrize(("hidden_dim", "width"), [(None, 16), (24, 24)])
def test_projector_is_the_papers(hidden_dim: int | None, width: int) -> None:
    """g is Linear, ReLU, Linear; z has 128 numbers (section 2.1)."""
    projector = build(hidden_dim=hidden_dim).projector
    assert isinstance(projector, nn.Sequential)
    first, relu, last = projector
    assert isinstance(first, nn.Linear)
    assert isinstance(relu, nn.ReLU)
    assert isinstance(last, nn.Linear)
    assert (first.in_features, first.out_features, last.in_features, last.out_features) == (16, width, width, 128)


def test_build_method_makes_what_is_registered() -> None:
    model = build()
    assert type(model) is METHODS["simclr"]
    assert (model.method, model.num_views) == ("simclr", 2)


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be positive and finite, got {temperature}"):
        SimCLRConfig(temperature=temperature)


def test_unknown_method() -> None:
    with pytest.raises(SagaError, match="no such method: 'simsiam', have simclr"):
        build_method(MethodConfig(name="simsiam"), ENCODER)
