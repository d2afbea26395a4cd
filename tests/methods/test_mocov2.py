"""MoCo v2 is MoCo, whose tests are in test_moco.py, with another projector and temperature."""

import pytest
import torch
import torch.nn.functional as F
from method_loops import build, random_views
from torch import nn

from saga_fast.methods import METHODS
from saga_fast.methods.moco import MoCo
from saga_fast.methods.mocov2 import MoCoV2, MoCoV2Config


def test_same_algorithm() -> None:
    """Only the config differs, so the loss of equal z is equal."""
    model = build("mocov2", queue_size=10, projection_dim=6, temperature=0.3).eval()
    assert type(model) is MoCoV2 is METHODS["mocov2"]
    assert {name for name in vars(MoCoV2) if not name.startswith("__")} == {"Config"}
    views = random_views(5, 2)
    own = model(views, torch.arange(5)).loss
    query, key = (F.normalize(model.projector(model.encoder(views[:, v])), dim=1) for v in range(2))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ model.queue.T], 1) / 0.3
    torch.testing.assert_close(own, -logits.log_softmax(1)[:, 0].mean(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("hidden_dim", "width"), [(None, 16), (24, 24)])
def test_projector_has_a_hidden_layer(hidden_dim: int | None, width: int) -> None:
    model = build("mocov2", queue_size=10, hidden_dim=hidden_dim)
    assert isinstance(model, MoCo)
    for projector in (model.projector, model.key_projector):
        assert isinstance(projector, nn.Sequential)
        assert [tuple(layer.weight.shape) for layer in projector if isinstance(layer, nn.Linear)] == [
            (width, 16),
            (128, width),
        ]


def test_the_papers_numbers() -> None:
    config = MoCoV2Config()
    assert (config.temperature, config.queue_size, config.momentum) == (0.2, 65536, 0.999)


@pytest.mark.parametrize(("field", "value"), [("temperature", 0.0), ("queue_size", 0), ("hidden_dim", 0)])
def test_config_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got {value}"):
        MoCoV2Config(**{field: value})  # type: ignore[arg-type]
