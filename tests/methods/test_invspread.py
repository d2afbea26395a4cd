"""Inv. Spread's loss against the paper's equations in plain Python loops, and its one-sided gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from method_loops import Rows, assert_gradient, build, dot, gradient_of_rows, random_rows, random_views, units

from saga_fast.methods import METHODS
from saga_fast.methods.invspread import InvSpread, InvSpreadConfig, invariant_spread


def probability(f: Rows, held: Rows, i: int, j: int, temperature: float) -> float:
    """Ye et al. 2019, Eq. 4 and 5 for 2N augmented views: P(j | i) among all rows but i."""
    each = [0.0 if k == i else math.exp(dot(f[i], held[k]) / temperature) for k in range(len(f))]
    return each[j] / sum(each)


def invariant_spread_loops(f: Rows, held: Rows, temperature: float) -> float:
    """Eq. 7: -sum_i [log P(i' | i) + sum over the other images' views j of log(1 - P(j | i))] / 2N.

    Rows 2k and 2k + 1 are views of image k; i' is i's other view. ``held`` are the rows that the gradient leaves out.
    """
    total = 0.0
    for i in range(len(f)):
        other = i + 1 if i % 2 == 0 else i - 1
        total -= math.log(probability(f, held, i, other, temperature))
        for j in range(len(f)):
            if j not in (i, other):
                total -= math.log(1.0 - probability(f, held, i, j, temperature))
    return total / len(f)


@pytest.mark.parametrize(("images", "dim"), [(1, 3), (2, 2), (3, 5), (5, 12)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient(images: int, dim: int, temperature: float) -> None:
    z = random_rows(2 * images, dim).requires_grad_()
    output = invariant_spread(F.normalize(z, dim=1), temperature)
    (gradient,) = torch.autograd.grad(output.loss, z)
    held = units(z)
    assert output.loss.item() == pytest.approx(invariant_spread_loops(held, held, temperature), rel=1e-9, abs=1e-12)

    def loss(rows: Rows) -> float:
        return invariant_spread_loops(units(rows), held, temperature)

    torch.testing.assert_close(gradient, gradient_of_rows(loss, z.detach()), rtol=1e-5, atol=1e-7)
    pairs = [dot(held[2 * k], held[2 * k + 1]) for k in range(images)]
    assert output.positive_similarity.item() == pytest.approx(sum(pairs) / images)
    assert not output.positive_similarity.requires_grad


def test_gradient_flows_through_one_operand_only() -> None:
    """The full derivative is another: what the test above compares with is not symmetric by chance."""
    z = random_rows(6, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(invariant_spread(F.normalize(z, dim=1), 0.5).loss, z)

    def through_both(rows: Rows) -> float:
        return invariant_spread_loops(units(rows), units(rows), 0.5)

    both = gradient_of_rows(through_both, z.detach())
    assert float((gradient - both).abs().max()) > 0.1 * float(both.abs().max())


def test_loss_and_gradient_in_float32() -> None:
    z64 = random_rows(64, 128)
    results = []
    for z in (z64.float().requires_grad_(), z64.clone().requires_grad_()):
        loss = invariant_spread(F.normalize(z, dim=1), 0.1).loss
        results.append((loss, torch.autograd.grad(loss, z)[0]))
    torch.testing.assert_close(results[0][0].double(), results[1][0], rtol=1e-5, atol=0.0)
    assert_gradient(results[0][1], results[1][1])


def test_loss_stays_float32_under_autocast() -> None:
    z = F.normalize(random_rows(32, 16).float(), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = invariant_spread(z, 0.1).loss
    torch.testing.assert_close(mixed, invariant_spread(z, 0.1).loss, rtol=1e-6, atol=0.0)


def test_forward_pairs_the_views_of_an_image() -> None:
    model = build("invspread", temperature=0.3, projection_dim=6).eval()
    assert type(model) is InvSpread is METHODS["invspread"]
    views = random_views(5, 2)
    with torch.no_grad():
        output = model(views, torch.arange(5))
        f = units(torch.cat([model.projector(model.encoder(views[i, v][None])) for i in range(5) for v in range(2)]))
    assert output.loss.item() == pytest.approx(invariant_spread_loops(f, f, 0.3), rel=1e-5)


@pytest.mark.parametrize(("field", "value"), [("temperature", 0.0), ("projection_dim", 0)])
def test_config_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got {value}"):
        InvSpreadConfig(**{field: value})  # type: ignore[arg-type]
