"""PIRL's two branches against the equations in loops; the bank's own tests are in test_bank.py."""

from typing import Any

import pytest
import torch
from method_loops import Rows, assert_gradient, build, dot, gradient_of_bias, random_views, units
from test_bank import softmax_loops
from torch import Tensor, nn

from saga_fast.kernels import PhotometricRecipe, jigsaw_patches
from saga_fast.methods import METHODS, ViewGroup
from saga_fast.methods.pirl import PIRL, PIRLConfig

INDEX = torch.tensor([4, 0, 11, 4])


def make(**fields: Any) -> PIRL:
    numbers = {"projection_dim": 6, "negatives": 8, "temperature": 0.3, "jigsaw_size": 29, "jigsaw_patch": 8}
    model = build("pirl", **{**numbers, **fields})
    assert isinstance(model, PIRL)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    return random_views(4, 1), random_views(4, 1, side=29, seed=5)


def jigsaw_z(model: PIRL, jigsaw: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Image by image and patch by patch: one linear layer each, nine side by side, another linear layer."""
    rows = []
    for image, index in zip(jigsaw[:, 0], INDEX, strict=True):
        patches = jigsaw_patches(image[None], patch=8, seed=seed, epoch=epoch, indices=index[None], impl="reference")
        each = [model.patch_projector(model.encoder(patch[None])) for patch in patches[0]]
        assert len(each) == 9
        rows.append(model.jigsaw_projector(torch.cat(each, 1)))
    return torch.cat(rows)


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_loss_and_gradient(weight: float) -> None:
    """(1 - w) L(image) + w L(jigsaw), both against the same rows."""
    model = make(jigsaw_weight=weight).eval()
    model.begin_epoch(7, 3)
    views, jigsaw = inputs()
    torch.manual_seed(2)
    output = model(views, INDEX, jigsaw)
    biases = [model.get_parameter(f"{name}.bias") for name in ("projector", "jigsaw_projector")]
    gradients = torch.autograd.grad(output.loss, biases)
    torch.manual_seed(2)
    idx, bank = model.draw(INDEX).tolist(), model.bank.rows.tolist()
    with torch.no_grad():
        image = torch.cat([model.projector(model.encoder(view)) for view in views])
        shuffled = jigsaw_z(model, jigsaw, seed=7, epoch=3)

    def loss(rows: Rows) -> float:
        return softmax_loops(units(rows), bank, idx, 0.3)

    expected = (1.0 - weight) * loss(image.tolist()) + weight * loss(shuffled.tolist())
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    for gradient, z, share in zip(gradients, (image, shuffled), (1.0 - weight, weight), strict=True):
        assert_gradient(gradient, share * gradient_of_bias(loss, z))

    def similarity(z: Tensor) -> float:
        return sum(dot(f, bank[i]) for f, i in zip(units(z), INDEX.tolist(), strict=True)) / 4

    expected = (1.0 - weight) * similarity(image) + weight * similarity(shuffled)
    assert output.positive_similarity.item() == pytest.approx(expected, rel=1e-4)


def test_patches_are_those_of_the_epoch() -> None:
    model = make().eval()
    losses = []
    for seed, epoch in ((7, 3), (7, 4), (8, 3), (7, 3)):
        model.begin_epoch(seed, epoch)
        torch.manual_seed(2)
        losses.append(model(inputs()[0], INDEX, inputs()[1]).loss.item())
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_the_bank_holds_the_views_features() -> None:
    model = make(bank_momentum=0.0).eval()
    views, jigsaw = inputs()
    model(views, INDEX, jigsaw)
    model.after_step()
    with torch.no_grad():
        features = torch.tensor(units(model.projector(model.encoder(views[:, 0]))))
    torch.testing.assert_close(model.bank.rows[INDEX[1:]], features[1:])


def test_gradient_reaches_every_parameter() -> None:
    model = make()
    views, jigsaw = inputs()
    model(views, INDEX, jigsaw).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for name in ("encoder.backbone.conv1", "projector", "patch_projector", "jigsaw_projector"):
        assert bool(model.get_parameter(f"{name}.weight").grad.any())  # type: ignore[union-attr]


def test_layers_and_further_views() -> None:
    """Linear dim-128 per patch, nine side by side, Linear 1152-128; a crop of 255 px, flipped, nothing else."""
    model = make(projection_dim=128, jigsaw_size=255, jigsaw_patch=64)
    assert type(model) is METHODS["pirl"]
    assert (model.method, model.num_views) == ("pirl", 1)
    heads = [model.projector, model.patch_projector, model.jigsaw_projector]
    shapes = [tuple(head.weight.shape) for head in heads if isinstance(head, nn.Linear)]
    assert shapes == [(128, 16), (128, 16), (128, 1152)]
    config = PIRLConfig()
    assert (config.jigsaw_size, config.jigsaw_patch, config.jigsaw_weight) == (255, 64, 0.5)
    assert model.more_views == (ViewGroup(size=255, scale=(0.6, 1.0), photometric=PhotometricRecipe(flip=0.5)),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jigsaw_weight": 1.5}, "jigsaw_weight must be in .*, got 1.5"),
        ({"jigsaw_patch": 86}, "jigsaw_patch must be in 1 to 85, a third of jigsaw_size, got 86"),
        ({"jigsaw_size": 2}, "jigsaw_size must be in 3 to 16384, got 2"),
        ({"jigsaw_scale": (0.0, 1.0)}, r"jigsaw_scale must be .*, got \[0.0, 1.0\]"),
        ({"jigsaw_scale": (0.6, 0.5)}, "jigsaw_scale"),
    ],
)
def test_config_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PIRLConfig(**fields)
