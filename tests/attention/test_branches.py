"""Boxes of a method with two encoders (CMC): the average of two Grad-CAM maps, float64 and autograd as the oracle."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from grad_cam import SIZE, SMALL_RESNET, assert_edges, grad_cam_edges, open_images, read_pixels, table_edges
from torch import Tensor, nn

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.heatmap import scaled_map
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.methods import build_method
from saga_fast.methods.cmc import CMC, CMCConfig
from saga_fast.models.encoder import EncoderConfig


@pytest.fixture(scope="module")
def few(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of the heatmap's size."""
    return make_images(tmp_path_factory.mktemp("branches"), per_class=12, size=(SIZE, SIZE), ending=".png", seed=1)


def make_model() -> CMC:
    torch.manual_seed(0)
    config = CMCConfig(projection_dim=10, negatives=4)
    model = build_method(config, EncoderConfig(**SMALL_RESNET), num_images=24)
    assert isinstance(model, CMC)
    for head in (model.projector.luminance, model.projector.chrominance):
        nn.init.uniform_(head.weight, -0.5, 1.0)  # about nought the random maps of one branch are all below it
    with torch.no_grad():
        for _ in range(3):
            model.encoder(torch.rand(16, 3, 32, 32))
    return model


def rgb(root: Path) -> Tensor:
    """The images in [0, 1], whatever normalisation they were read with."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    return (read_pixels(root) * std[:, None, None] + mean[:, None, None]).float()


def branch_maps(model: CMC, images: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Each branch's heatmap by a hook and autograd, scaled to [0, 1]: (B, 2, u, v); and z side by side (B, 20)."""
    maps, outputs = [], []
    for branch in model.branches(images):
        encoder, projector = (copy.deepcopy(part).double().eval() for part in (branch.encoder, branch.projector))
        kept: list[Tensor] = []
        encoder.get_submodule("backbone.layer4").register_forward_hook(
            lambda *arguments, kept=kept: kept.append(arguments[2])
        )
        own, z_rows = [], []
        for image in branch.images.double():
            kept.clear()
            z = projector(encoder(image[None]))[0]
            (gradient,) = torch.autograd.grad(z.max(), kept[0])
            coarse = torch.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1))[0].detach()
            low = coarse.min() if normalize == "minmax" else torch.zeros(())
            own.append((coarse - low) / (coarse.max() - low) if coarse.max() > low else torch.zeros_like(coarse))
            z_rows.append(z.detach())
        maps.append(torch.stack(own))
        outputs.append(torch.stack(z_rows))
    return torch.stack(maps, 1), torch.cat(outputs, 1)


@pytest.mark.parametrize(
    ("delta", "normalize"),
    [(0.7, "minmax"), (0.5, "minmax"), (0.6, "max")],
)
def test_boxes_are_those_of_the_average_map(few: Path, delta: float, normalize: Normalize) -> None:
    model = make_model()
    _, z = branch_maps(model, rgb(few), normalize)
    with torch.no_grad():  # so that either branch's z is the strongest of some images
        model.projector.luminance.bias.add_((z[:, 10:].amax(1) - z[:, :10].amax(1)).median())
    table = build_box_table(model, open_images(few), AttentionPass(size=SIZE, delta=delta, normalize=normalize))
    maps, z = branch_maps(model, rgb(few), normalize)
    half = torch.full((24, 2), 0.5, dtype=torch.float64)
    edges, found = grad_cam_edges(maps, half, SIZE, delta, normalize)
    assert_edges(table_edges(table, SIZE), edges)
    np.testing.assert_array_equal(table.found, found)
    # The label is that of the strongest dimension of z as model.projector gives it, all branches side by side.
    np.testing.assert_array_equal(table.pseudo_label, z.argmax(1).numpy())
    np.testing.assert_allclose(table.score, z.max(1).values.numpy(), rtol=1e-3, atol=1e-5)
    assert {bool(label >= 10) for label in table.pseudo_label} == {True, False}  # both branches speak
    # The average is neither map alone.
    for branch in range(2):
        alone = grad_cam_edges(maps[:, branch : branch + 1], half[:, :1], SIZE, delta, normalize)[0]
        assert (alone != edges).any(1).mean() > 0.3


def test_a_branch_without_a_map_has_no_vote(few: Path) -> None:
    model = make_model()
    nn.init.constant_(model.projector.luminance.weight, -1.0)
    nn.init.constant_(model.projector.luminance.bias, -1.0)
    table = build_box_table(model, open_images(few), delta=0.5)
    maps, _ = branch_maps(model, rgb(few), "minmax")
    assert not maps[:, 0].any()
    edges, found = grad_cam_edges(maps[:, 1:], torch.ones(24, 1), SIZE, 0.5, "minmax")
    assert_edges(table_edges(table, SIZE), edges)
    np.testing.assert_array_equal(table.found, found)
    nn.init.constant_(model.projector.chrominance.weight, float("nan"))
    assert not build_box_table(model, open_images(few)).found.any()


def test_scaled_map() -> None:
    features = torch.tensor([[[[1.0, 2.0, 4.0]], [[0.0, 0.0, 1.0]]]]).repeat(5, 1, 1, 1)
    weights = torch.tensor([[1.0, 0.0], [1.0, 6.0], [-1.0, 0.0], [0.0, 0.0], [float("nan"), 1.0]])
    expected = [[0, 1 / 3, 1], [0, 1 / 9, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(scaled_map(features, weights, "minmax")[:, 0], torch.tensor(expected))
    expected = [[1 / 4, 1 / 2, 1], [1 / 10, 1 / 5, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(scaled_map(features, weights, "max")[:, 0], torch.tensor(expected))
