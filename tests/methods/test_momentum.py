"""Moving averages of networks: their schedule at points computed by hand, and which numbers they change."""

import copy
import math

import pytest
import torch
from torch import nn

from saga_fast.methods.momentum import average_of, check_momentum, cosine_momentum, move_averages


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("finished", "momentum"),
    [(0.0, 0.996), (0.5, 0.998), (1.0, 1.0), (0.25, 1 - 0.002 * (1 + math.sqrt(0.5))), (1 / 3, 1 - 0.004 * 0.75)],
)
def test_cosine(finished: float, momentum: float) -> None:
    assert cosine_momentum(0.996, finished) == pytest.approx(momentum, rel=1e-12)


def test_average_starts_as_an_untrained_copy() -> None:
    module = network()
    average = average_of(module)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), module.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_parameters_move_and_statistics_do_not() -> None:
    module, average = network(), average_of(network())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module(torch.randn(8, 3))  # its running statistics move
    before, trained = copy.deepcopy(average.state_dict()), copy.deepcopy(module.state_dict())
    move_averages([average], [module], 0.75)
    for name, tensor in average.state_dict().items():
        statistic = "running" in name or "tracked" in name
        expected = before[name] if statistic else 0.75 * before[name] + 0.25 * trained[name]
        torch.testing.assert_close(tensor, expected)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in module.state_dict().items())


def test_momentum_is_checked() -> None:
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"tau must be in \[0, 1\), got {momentum}"):
            check_momentum("tau", momentum)
