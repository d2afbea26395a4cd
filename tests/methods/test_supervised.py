"""A classifier: logits, and their cross-entropy with the images' labels."""

import pytest
import torch
from method_loops import ENCODER, build, random_views

from saga_fast.errors import SagaError
from saga_fast.methods import METHODS, build_method
from saga_fast.methods.supervised import SupervisedConfig


def test_without_labels_it_has_logits_and_no_loss() -> None:
    model = build("supervised", num_classes=7).eval()
    views = random_views(3, 1)
    assert model.projector(model.encoder(views[:, 0])).shape == (3, 7)
    with pytest.raises(SagaError, match="cannot be trained without labels"):
        model(views, torch.arange(3))


def test_the_loss_is_the_cross_entropy_of_the_images_labels() -> None:
    labels = torch.tensor([4, 0, 2, 1, 4])
    model = build_method(SupervisedConfig(num_classes=5), ENCODER, labels=labels).eval()
    views, index = random_views(3, 1), torch.tensor([4, 1, 2])
    output = model(views, index)
    probabilities = model.projector(model.encoder(views[:, 0])).double().softmax(1)
    true = torch.stack([probabilities[row, label] for row, label in enumerate([4, 0, 2])])
    torch.testing.assert_close(output.loss.double(), -true.log().mean())
    torch.testing.assert_close(output.positive_similarity.double(), true.mean())
    assert not any("labels" in name for name in model.state_dict())


def test_more_classes_than_the_classifier_has_are_refused() -> None:
    with pytest.raises(SagaError, match="num_classes is 3 and the images have 5 classes"):
        build_method(SupervisedConfig(num_classes=3), ENCODER, labels=torch.tensor([0, 4]))


def test_it_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="num_classes must be in 2 to 2147483648, got 1"):
        METHODS["supervised"].Config(name="supervised", num_classes=1)  # type: ignore[call-arg]
