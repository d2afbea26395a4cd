"""A classifier: attention and features, no training."""

import pytest
import torch
from method_loops import build, random_views

from saga_fast.errors import SagaError
from saga_fast.methods import METHODS


def test_it_has_logits_and_no_loss() -> None:
    model = build("supervised", num_classes=7).eval()
    views = random_views(3, 2)
    assert model.projector(model.encoder(views[:, 0])).shape == (3, 7)
    assert not model.trainable
    with pytest.raises(SagaError, match="cannot be trained"):
        model(views, torch.arange(3))


def test_it_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="num_classes must be in 2 to 2147483648, got 1"):
        METHODS["supervised"].Config(name="supervised", num_classes=1)  # type: ignore[call-arg]
