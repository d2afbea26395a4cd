"""The shapes that projectors come in."""

import pytest
import torch
from torch import nn

from saga_fast.methods import METHODS
from saga_fast.methods.heads import Norm, mlp


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["none", "hidden", "all"])
def test_mlp(layers: int, norm: Norm) -> None:
    head = mlp(5, 7, 3, layers=layers, norm=norm)
    linears = [module for module in head if isinstance(module, nn.Linear)]
    widths = [(module.in_features, module.out_features) for module in linears]
    assert widths == list(zip([5, 7, 7][:layers], [*[7, 7][: layers - 1], 3], strict=True))
    normed = {"none": 0, "hidden": layers - 1, "all": layers}[norm]
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head) == normed
    assert sum(module.bias is None for module in linears) == normed
    assert sum(isinstance(module, nn.ReLU) for module in head) == layers - 1
    assert isinstance(head[-1], nn.BatchNorm1d if norm == "all" else nn.Linear)
    assert head(torch.randn(4, 5)).shape == (4, 3)


@pytest.mark.parametrize("method", ["simclr", "mocov2"])
def test_numbers_are_checked(method: str) -> None:
    for fields, message in (({"projection_layers": 0}, "in 1 to 64, got 0"), ({"projection_norm": "some"}, "'some'")):
        with pytest.raises(ValueError, match=message):
            METHODS[method].Config(name=method, **fields)
