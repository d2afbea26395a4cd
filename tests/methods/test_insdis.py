"""InsDis' forward pass against the equation in loops; the bank's own tests are in test_bank.py."""

from typing import Any

import pytest
import torch
from method_loops import Rows, assert_gradient, build, dot, gradient_of_bias, random_views, units
from test_bank import estimated_z, nce_loops, softmax_loops
from torch import nn

from saga_fast.methods import METHODS
from saga_fast.methods.insdis import InsDis

INDEX = torch.tensor([4, 0, 11, 4])


def make(**fields: Any) -> InsDis:
    model = build("insdis", **{"projection_dim": 6, "negatives": 8, "temperature": 0.3, **fields})
    assert isinstance(model, InsDis)
    return model


@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_loss_and_gradient(loss: str) -> None:
    """Eval mode: each row is the network's output on one view alone."""
    model = make(loss=loss).eval()
    views = random_views(4, 1)
    torch.manual_seed(2)
    output = model(views, INDEX)
    (gradient,) = torch.autograd.grad(output.loss, model.get_parameter("projector.bias"))
    torch.manual_seed(2)
    idx, bank = model.draw(INDEX).tolist(), model.bank.rows.tolist()
    with torch.no_grad():
        z = torch.cat([model.projector(model.encoder(views[i])) for i in range(4)])
    constant = estimated_z(units(z), bank, idx, 0.3)

    def expected(rows: Rows) -> float:
        if loss == "softmax":
            return softmax_loops(units(rows), bank, idx, 0.3)
        return nce_loops(units(rows), bank, idx, 0.3, constant)

    assert output.loss.item() == pytest.approx(expected(z.tolist()), rel=1e-5)
    assert_gradient(gradient, gradient_of_bias(expected, z))
    similarity = sum(dot(f, bank[i]) for f, i in zip(units(z), INDEX.tolist(), strict=True)) / 4
    assert output.positive_similarity.item() == pytest.approx(similarity, rel=1e-4)


def test_the_bank_moves_after_the_step() -> None:
    model = make(bank_momentum=0.0).eval()
    views = random_views(4, 1)
    before = model.bank.rows.clone()
    model(views, INDEX).loss.backward()
    assert torch.equal(model.bank.rows, before)
    model.after_step()
    with torch.no_grad():
        features = torch.tensor(units(model.projector(model.encoder(views[:, 0]))))
    torch.testing.assert_close(model.bank.rows[INDEX[1:]], features[1:])  # image 4's last view, not its first
    rest = [i for i in range(20) if i not in INDEX.tolist()]
    assert torch.equal(model.bank.rows[rest], before[rest])


def test_build_method_makes_what_is_registered() -> None:
    model = make()
    assert type(model) is METHODS["insdis"]
    assert (model.method, model.num_views, model.more_views) == ("insdis", 1, ())
    assert isinstance(model.projector, nn.Linear)
