"""The attention pass against Grad-CAM as its paper defines it: float64, autograd through the whole network.

Shapes: B images, C channels, (u, v) the last convolutional map, S the image's side.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grad_cam import (
    CHANNEL_SCORES,
    RESNET,
    SCORES,
    SIZE,
    SMALL_RESNET,
    assert_edges,
    autograd_weights,
    copy_images,
    grad_cam_edges,
    make_model,
    open_images,
    read_pixels,
    table_edges,
)
from torch import Tensor, nn

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention import build as attention
from saga_fast.attention.channel_weights import Score, channel_weights
from saga_fast.errors import SagaError
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders import BoxTable, ImageFolder, WholePlan, open_loader
from saga_fast.loaders.boxes import box_iou

# Encoder, and the module whose output is A. The first is pooled by the global average, the others are not.
BACKBONES: list[tuple[dict[str, Any], str]] = [
    (SMALL_RESNET, "layer4"),
    ({"name": "test_convnext"}, "stages"),
    ({"name": "mobilenetv3_small_050"}, "blocks"),
    ({"name": "test_mambaout"}, "stages"),
    ({**RESNET, "args": {**RESNET["args"], "global_pool": "max"}}, "layer4"),
]


def assert_same(table: BoxTable, other: BoxTable) -> None:
    for name in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name))


@pytest.fixture(scope="module")
def pngs(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of the heatmap's size: what the encoder sees are the stored pixels."""
    return make_images(tmp_path_factory.mktemp("pngs"), per_class=200, size=(SIZE, SIZE), ending=".png")


@pytest.fixture(scope="module")
def few(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of the heatmap's size."""
    return make_images(tmp_path_factory.mktemp("few"), per_class=12, size=(SIZE, SIZE), ending=".png", seed=1)


def test_boxes_equal_float64_grad_cam(pngs: Path) -> None:
    model = make_model(SMALL_RESNET)
    table = build_box_table(model, open_images(pngs))
    maps, alphas, z = autograd_weights(model, "layer4", read_pixels(pngs), "pseudo_label")
    edges, found = grad_cam_edges(maps, alphas, SIZE, 0.7, "minmax")

    assert len(table) == 400
    assert_edges(table_edges(table, SIZE), edges, exact=0.995)
    np.testing.assert_array_equal(table.found, found)
    np.testing.assert_array_equal(table.pseudo_label, z.argmax(1).numpy())
    np.testing.assert_allclose(table.score, z.max(1).values.numpy(), rtol=1e-4, atol=1e-5)
    # The comparison says something only where boxes differ from the whole image and from each other.
    assert found.mean() > 0.8
    assert len(np.unique(edges, axis=0)) > 100


@pytest.mark.parametrize("score", CHANNEL_SCORES)
@pytest.mark.parametrize(("delta", "normalize"), [(0.3, "minmax"), (0.5, "max")])
def test_every_score_and_scaling(few: Path, score: Score, delta: float, normalize: Normalize) -> None:
    model = make_model(SMALL_RESNET, linear=True)
    table = build_box_table(
        model, open_images(few), AttentionPass(size=SIZE, delta=delta, score=score, normalize=normalize)
    )
    maps, alphas, z = autograd_weights(model, "layer4", read_pixels(few), score)
    edges, found = grad_cam_edges(maps, alphas, SIZE, delta, normalize)
    assert_edges(table_edges(table, SIZE), edges)
    np.testing.assert_array_equal(table.found, found)
    np.testing.assert_array_equal(table.pseudo_label, z.argmax(1).numpy())
    assert len(np.unique(edges, axis=0)) > 5


@pytest.mark.parametrize(("encoder", "layer"), BACKBONES, ids=[encoder["name"] for encoder, _ in BACKBONES])
def test_every_encoder_equals_float64_grad_cam(few: Path, encoder: dict[str, Any], layer: str) -> None:
    model = make_model(encoder)
    assert model.encoder.is_global_average == (layer == "layer4" and "global_pool" not in encoder["args"])
    table = build_box_table(model, open_images(few, size=96), delta=0.6)
    x = torch.stack([batch_views for batch in open_images(few, size=96) for batch_views in batch.views[:, 0]])
    x = (x.double().permute(0, 3, 1, 2) / 255.0 - torch.tensor(model.encoder.mean).double()[:, None, None]) / (
        torch.tensor(model.encoder.std).double()[:, None, None]
    )
    maps, alphas, _ = autograd_weights(model, layer, x, "pseudo_label")
    edges, found = grad_cam_edges(maps, alphas, 96, 0.6, "minmax")
    assert_edges(table_edges(table, 96), edges)
    np.testing.assert_array_equal(table.found, found)
    assert len(np.unique(edges, axis=0)) > 5


@pytest.mark.parametrize("score", CHANNEL_SCORES)
@pytest.mark.parametrize("linear", [False, True], ids=["mlp", "linear"])
def test_closed_form_equals_autograd_path(linear: bool, score: Score) -> None:
    model = make_model(SMALL_RESNET, linear=linear).eval()
    x = torch.randn(9, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.encoder.features(x)
    assert model.encoder.is_global_average
    closed = channel_weights(model.encoder, model.projector, features, score)
    model.encoder.is_global_average = False
    general = channel_weights(model.encoder, model.projector, features, score)

    _, alphas, z = autograd_weights(model, "layer4", x, score)
    for alpha, label, value in (closed, general):
        assert alpha.shape == (9, 24)
        assert (alpha.dtype, label.dtype, value.dtype) == (torch.float32, torch.int64, torch.float32)
        assert not alpha.requires_grad
        assert not value.requires_grad
        assert relative_error(alpha, alphas) < 1e-5
        assert torch.equal(label, z.argmax(1))
        torch.testing.assert_close(value.double(), z.max(1).values, rtol=1e-5, atol=1e-6)
    assert relative_error(closed[0], general[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_features_are_pooled_in_float32(dtype: torch.dtype) -> None:
    model = make_model(SMALL_RESNET, linear=False).eval()
    features = torch.rand(9, 24, 7, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    half = channel_weights(model.encoder, model.projector, features, "pseudo_label")
    full = channel_weights(model.encoder, model.projector, features.float(), "pseudo_label")
    assert torch.equal(half[1], full[1])
    for x, expected in ((half[0], full[0]), (half[2], full[2])):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


def relative_error(alpha: Tensor, expected: Tensor) -> float:
    """The largest deviation over the largest entry of its row."""
    return float(((alpha - expected).abs() / expected.abs().amax(1, keepdim=True)).max())


def test_any_pooling_is_differentiated() -> None:
    """The pooled encoder and a normalising head, where the gradient differs from position to position."""
    model = make_model({"name": "test_convnext"}).eval()
    x = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.encoder.features(x)
    before = features.clone()
    alpha, _, _ = channel_weights(model.encoder, model.projector, features, "pseudo_label")
    _, alphas, _ = autograd_weights(model, "stages", x, "pseudo_label")
    assert relative_error(alpha, alphas) < 1e-5
    assert torch.equal(features, before)  # the boxes are read off them next
    assert all(parameter.grad is None for parameter in model.parameters())


def test_projector_with_batch_norm(few: Path) -> None:
    """A SimCLR v2 head: rows of a batch are independent in eval mode only."""
    model = make_model(SMALL_RESNET)
    model.projector = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8, bias=False))
    model.projector(torch.randn(32, 24))
    table = build_box_table(model, open_images(few), delta=0.5)
    maps, alphas, _ = autograd_weights(model, "layer4", read_pixels(few), "pseudo_label")
    assert_edges(table_edges(table, SIZE), grad_cam_edges(maps, alphas, SIZE, 0.5, "minmax")[0])


def test_size_is_the_grid_of_the_boxes(few: Path) -> None:
    model = make_model(SMALL_RESNET)
    coarse, fine = (build_box_table(model, open_images(few), size=size) for size in (16, 160))
    table_edges(coarse, 16)
    table_edges(fine, 160)
    assert (fine.boxes * 16 % 1 > 1e-3).any()
    assert np.abs(coarse.boxes[:, :2] - fine.boxes[:, :2])[coarse.found & fine.found].max() < 2 / 16


def test_metadata_says_how_the_table_was_made(few: Path) -> None:
    loader = open_images(few)
    table = build_box_table(
        make_model(SMALL_RESNET),
        loader,
        AttentionPass(size=SIZE, delta=0.55, score="activation", normalize="max"),
        metadata={"checkpoint": "abc", "epoch": "7"},
    )
    assert table.metadata == {
        "dataset": loader.source.fingerprint,
        "delta": "0.55",
        "size": str(SIZE),
        "normalize": "max",
        "attention_score": "activation",
        "region": "all",
        "mirror": "False",
        "checkpoint": "abc",
        "epoch": "7",
    }


@pytest.mark.parametrize("encoder", [SMALL_RESNET, {"name": "test_convnext"}], ids=["closed", "general"])
@pytest.mark.parametrize("score", SCORES)
def test_two_runs_are_identical(few: Path, encoder: dict[str, Any], score: Score) -> None:
    model = make_model(encoder)
    before = copy.deepcopy(model.state_dict())
    options = AttentionPass(size=SIZE, score=score)
    first = build_box_table(model, open_images(few, threads=1), options)
    assert_same(first, build_box_table(model, open_images(few, threads=3), options))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # batch norm counts nothing here


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored(few: Path, training: bool) -> None:
    model = make_model(SMALL_RESNET).train(training)
    build_box_table(model, open_images(few))
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_after_an_error(few: Path, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(SMALL_RESNET).train(training)
    modes = []

    def fail(*_: Any, **__: Any) -> None:
        modes.append(model.training)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(attention, "attention_boxes", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        build_box_table(model, open_images(few))
    assert modes == [False]
    assert all(module.training == training for module in model.modules())


def test_error_of_the_loader_passes_through(few: Path, tmp_path: Path) -> None:
    model = make_model(SMALL_RESNET)
    source = ImageFolder(copy_images(few, tmp_path / "images", spoil=[3, 4]))
    loader = open_loader("folder", source, WholePlan(size=SIZE), batch_size=8)  # at most 1 % may be bad
    with pytest.raises(SagaError, match="cannot be decoded"):
        build_box_table(model, loader)
    assert model.training


@pytest.mark.parametrize(
    ("batch_size", "spoil"),
    [(7, [0, 5, 23]), (24, [11]), (23, [23]), (1, [4, 5])],
    ids=["several", "one batch", "alone in the last batch", "batches of one"],
)
def test_undecodable_images_keep_the_whole_image(few: Path, tmp_path: Path, batch_size: int, spoil: list[int]) -> None:
    model = make_model(SMALL_RESNET)
    clean = build_box_table(model, open_images(few, batch_size=batch_size))
    loader = open_images(copy_images(few, tmp_path / "images", spoil=spoil), batch_size=batch_size)
    table = build_box_table(model, loader)

    assert loader.bad.indices.tolist() == spoil
    np.testing.assert_array_equal(table.boxes[spoil], np.tile([0.0, 0.0, 1.0, 1.0], (len(spoil), 1)))
    assert not table.found[spoil].any()
    np.testing.assert_array_equal(table.pseudo_label[spoil], -1)
    np.testing.assert_array_equal(table.score[spoil], 0.0)
    # All others as if nothing had been missing: no index has shifted.
    rest = np.setdiff1d(np.arange(24), spoil)
    np.testing.assert_array_equal(table.pseudo_label[rest], clean.pseudo_label[rest])
    np.testing.assert_allclose(table.score[rest], clean.score[rest], rtol=1e-4)
    assert_edges(table_edges(table, SIZE)[rest], table_edges(clean, SIZE)[rest])
    # Known as bad now, they are not opened again.
    assert_same(table, build_box_table(model, loader))


def test_maps_without_a_box_are_not_found(few: Path) -> None:
    model = make_model(SMALL_RESNET, linear=True)
    for parameter in model.projector.parameters():
        nn.init.constant_(parameter, -1.0)  # every channel votes against: ReLU leaves nothing
    table = build_box_table(model, open_images(few))
    assert not table.found.any()
    np.testing.assert_array_equal(table.boxes, BoxTable.whole(24).boxes)
    assert (table.score < 0.0).all()


def test_network_that_is_not_finite_finds_nothing(few: Path) -> None:
    model = make_model(SMALL_RESNET)
    nn.init.constant_(model.encoder.backbone.conv1.weight, float("nan"))
    table = build_box_table(model, open_images(few))
    assert not table.found.any()
    np.testing.assert_array_equal(table.boxes, BoxTable.whole(24).boxes)


def test_bfloat16_and_channels_last_give_nearly_the_same_boxes(few: Path) -> None:
    model = make_model(SMALL_RESNET)
    full = build_box_table(model, open_images(few), delta=0.5)
    half = build_box_table(
        model, open_images(few), AttentionPass(size=SIZE, delta=0.5, precision="bf16", channels_last=True)
    )
    assert (half.score != full.score).any()  # it did run in another number format
    assert np.median(box_iou(full.boxes, half.boxes)) > 0.8
