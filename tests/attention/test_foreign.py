"""Boxes of other projects' models, without a saga-fast checkpoint: the same boxes as from saga-fast's own classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from grad_cam import SIZE, SMALL_RESNET, make_model, open_images
from test_tokens import SIDE, options, transformer
from torch import Tensor, nn

from saga_fast.attention import AttentionPass, FeatureModel, build_box_table
from saga_fast.attention.channel_weights import Score
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.loaders import BoxTable


@pytest.fixture(scope="module")
def few(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of the heatmap's size."""
    return make_images(tmp_path_factory.mktemp("few"), per_class=12, size=(SIZE, SIZE), ending=".png", seed=1)


def assert_same(table: BoxTable, other: BoxTable) -> None:
    np.testing.assert_array_equal(table.found, other.found)
    np.testing.assert_array_equal(table.pseudo_label, other.pseudo_label)
    np.testing.assert_allclose(table.score, other.score, rtol=1e-5)
    np.testing.assert_allclose(table.boxes, other.boxes, atol=1e-6)
    assert len(np.unique(table.boxes, axis=0)) > 5


class SimCLR(nn.Module):
    """The shape of lightly's examples: a backbone that pools, and a projection head."""

    def __init__(self, backbone: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projection_head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z


@pytest.mark.parametrize("score", ["pseudo_label", "activation", "background"])
@pytest.mark.parametrize("mirror", [False, True])
def test_module_of_a_backbone_and_a_head(few: Path, score: Score, mirror: bool) -> None:
    """The encoder and the projector of a saga-fast model, as a module that saga-fast does not know."""
    model = make_model(SMALL_RESNET)
    ours = model.encoder.backbone
    stem = [ours.conv1, ours.bn1, ours.act1, ours.maxpool, ours.layer1, ours.layer2, ours.layer3, ours.layer4]
    module = SimCLR(nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1)), model.projector).train()
    foreign = FeatureModel(
        module,
        features=lambda x: module.backbone[:-1](x),
        head=lambda a: module.projection_head(a.mean((2, 3))),
    )
    how = AttentionPass(size=SIZE, score=score, mirror=mirror)
    assert_same(build_box_table(foreign, open_images(few), how), build_box_table(model, open_images(few), how))
    assert module.training


def test_lightly(few: Path) -> None:
    """The module of lightly's SimCLR example; its boxes are those of autograd through the whole of it."""
    heads = pytest.importorskip("lightly.models.modules.heads")
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    module = SimCLR(nn.Sequential(*list(resnet.children())[:-1]), heads.SimCLRProjectionHead(512, 512, 16)).eval()
    foreign = FeatureModel(
        module,
        features=module.backbone[:-1],
        head=lambda a: module.projection_head(module.backbone[-1](a).flatten(1)),
    )
    loader = open_images(few, size=160)
    table = build_box_table(foreign, loader)
    assert not module.training
    for batch in loader:
        x = batch.views[:, 0].permute(0, 3, 1, 2) / 255.0
        x = (x - torch.tensor(foreign.encoder.mean)[:, None, None]) / torch.tensor(foreign.encoder.std)[:, None, None]
        with torch.no_grad():
            z = module(x)
        np.testing.assert_array_equal(table.pseudo_label[batch.index], z.argmax(1))
        np.testing.assert_allclose(table.score[batch.index], z.amax(1), rtol=1e-4, atol=1e-6)
    assert table.found.mean() > 0.5
    assert len(np.unique(table.boxes, axis=0)) > 5


class HuggingFaceViT(nn.Module):
    """The shape of transformers' ViTModel (version 5): ``embeddings``, ``layers`` and ``layernorm``."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.embeddings = _Embeddings(vit)
        self.layers = nn.ModuleList(vit.blocks)
        self.layernorm = vit.norm


class _Embeddings(nn.Module):
    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.vit._pos_embed(self.vit.patch_embed(x))
        return embedded


@pytest.mark.parametrize("score", ["pseudo_label", "background"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_hugging_face_vit(few: Path, score: Score, precision: Any) -> None:
    model = transformer("token")
    module: Any = HuggingFaceViT(model.encoder.backbone)

    foreign = FeatureModel(
        module,
        features=lambda x: nn.Sequential(*module.layers[:-1])(module.embeddings(x)),
        head=lambda tokens: model.projector(module.layernorm(module.layers[-1](tokens))[:, 0]),
        prefix_tokens=1,
    )
    how = options(score, precision=precision)
    table, ours = (build_box_table(each, open_images(few, size=SIDE), how) for each in (foreign, model))
    if precision == "fp32":
        assert_same(table, ours)
    else:  # the order of the last block's operations differs
        assert (table.pseudo_label == ours.pseudo_label).mean() > 0.8


def test_features_for_evaluation(few: Path) -> None:
    module = SimCLR(nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.AdaptiveAvgPool2d(1)), nn.Linear(6, 4))
    foreign = FeatureModel(
        module,
        features=module.backbone[0],
        head=lambda a: module.projection_head(a.mean((2, 3))),
    )
    features, _ = extract_features(FrozenModel(model=foreign), open_images(few))
    assert features["backbone"].shape == (24, 4)


def test_input_is_normalised_as_told(few: Path) -> None:
    received: list[Tensor] = []

    def features(x: Tensor) -> Tensor:
        received.append(x)
        return x

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    foreign = FeatureModel(nn.Linear(3, 3), features=features, head=lambda a: a.mean((2, 3)), mean=mean, std=std)
    loader = open_images(few, threads=1)
    build_box_table(foreign, loader, AttentionPass(size=SIZE, forward="eager"))
    views = torch.cat([batch.views[:, 0] for batch in loader]).double() / 255.0
    expected = (views - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(torch.cat(received).double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "prefix_tokens", "match"),
    [
        (
            (2, 50, 8),
            None,
            r"features of Linear returned \(\d+, 50, 8\), not a map \(B, C, u, v\): choose another layer",
        ),
        ((2, 50, 8), 0, r"\(\d+, 50, 8\), not tokens \(B, 0 \+ u \* u, C\): .* or set prefix_tokens"),
        ((2, 8, 7, 7), 1, r"\(\d+, 8, 7, 7\), not tokens \(B, 1 \+ u \* u, C\)"),
        ((2, 3, 8), 5, r"\(\d+, 3, 8\), not tokens \(B, 5 \+ u \* u, C\)"),
        ((2, 8), None, r"\(\d+, 8\), not a map"),
    ],
    ids=str,
)
def test_other_shapes_are_refused(few: Path, shape: tuple[int, ...], prefix_tokens: int | None, match: str) -> None:
    foreign = FeatureModel(
        nn.Linear(3, 3),
        features=lambda x: torch.zeros(len(x), *shape[1:]),
        head=lambda a: a.flatten(1),
        prefix_tokens=prefix_tokens,
    )
    with pytest.raises(SagaError, match=match):
        build_box_table(foreign, open_images(few))


def test_refusals(few: Path) -> None:
    foreign = FeatureModel(nn.Linear(3, 3), features=lambda x: x, head=lambda a: a.mean((2, 3)))
    with pytest.raises(SagaError, match="forward=compiled is for saga-fast's encoders, not for a FeatureModel"):
        build_box_table(foreign, open_images(few), AttentionPass(size=SIZE, forward="compiled"))
    with pytest.raises(SagaError, match=r"score token .* encoder 'Linear'"):
        build_box_table(foreign, open_images(few), AttentionPass(size=SIZE, score="token"))
