"""Backbones by name: their maps, their stems, how they are pooled, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from saga_fast.errors import SagaError
from saga_fast.models.encoder import Encoder, EncoderConfig

ARGS: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}


def build(name: str = "resnet18", **fields: Any) -> Encoder:
    return Encoder(EncoderConfig(name=name, **{"args": ARGS if name == "resnet18" else {}, **fields}))


@pytest.mark.parametrize(
    ("stem", "side", "cells"),
    [
        ("imagenet", 32, 1),
        ("medium", 32, 2),
        ("small", 32, 4),
        ("imagenet", 96, 3),
        ("medium", 72, 5),
        ("small", 33, 5),
    ],
)
def test_stem_sets_the_size_of_the_map(stem: str, side: int, cells: int) -> None:
    encoder = build(stem=stem)
    x = torch.randn(2, 3, side, side)
    assert encoder.features(x).shape == (2, 16, cells, cells)
    assert encoder(x).shape == (2, 16)


@pytest.mark.parametrize(("stem", "stride"), [("medium", (2, 2)), ("small", (1, 1))])
def test_stem_is_a_3x3_convolution_without_pooling(stem: str, stride: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = build(stem=stem, args={**ARGS, "channels": [64, 8, 8, 16]})
    convolution = encoder.backbone.conv1
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.kernel_size, convolution.stride, convolution.bias) == ((3, 3), stride, None)
    # He et al.: variance 2 / fan-out; the deviation of 1728 weights is itself known to 1.7 %
    expected = (2.0 / (convolution.out_channels * 9)) ** 0.5
    assert float(convolution.weight.detach().std()) == pytest.approx(expected, rel=0.1)
    assert not any(isinstance(module, nn.MaxPool2d) for module in encoder.modules())


def test_imagenet_stem_leaves_the_backbone_alone() -> None:
    encoder = build(stem="imagenet")
    assert encoder.backbone.conv1.kernel_size == (7, 7)
    assert any(isinstance(module, nn.MaxPool2d) for module in encoder.modules())


@pytest.mark.parametrize("name", ["test_convnext", "resnet18d"])
@pytest.mark.parametrize("stem", ["medium", "small"])
def test_stem_needs_one_first_convolution(name: str, stem: str) -> None:
    with pytest.raises(SagaError, match=f"stem .* not '{name}'"):
        build(name, stem=stem)


GLOBAL_AVERAGE = [
    ("resnet18", {}, True),
    ("test_byobnet", {}, True),
    ("test_efficientnet", {}, True),
    ("densenet121", {"growth_rate": 4, "block_config": (1, 1, 1, 1)}, True),
    ("test_convnext", {}, False),  # normalises after pooling
    ("mobilenetv3_small_050", {}, False),  # a convolution and an activation after pooling
    ("resnet18", {"global_pool": "max"}, False),
    ("resnet18", {"global_pool": "avgmax"}, False),
]


@pytest.mark.parametrize(("name", "args", "expected"), GLOBAL_AVERAGE)
def test_is_global_average(name: str, args: dict[str, Any], expected: bool) -> None:
    encoder = build(name, args={**(ARGS if name == "resnet18" else {}), **args}).eval()
    assert encoder.is_global_average is expected
    with torch.no_grad():
        a = encoder.features(torch.randn(3, 3, 64, 96))
        h = encoder.pool(a)
    assert h.shape == (3, encoder.dim)
    is_mean = h.shape == a.shape[:2] and torch.allclose(h, a.mean((2, 3)), atol=1e-5)
    assert is_mean is expected


def test_forward_pools_the_features() -> None:
    encoder = build().eval()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(encoder(x), encoder.pool(encoder.features(x)))


def test_construction_leaves_mode_and_statistics_alone() -> None:
    encoder = build("test_byobnet")
    assert all(module.training for module in encoder.modules())
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert torch.equal(norm.get_buffer("num_batches_tracked"), torch.tensor(0))
        assert not bool(norm.get_buffer("running_mean").any())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_weights_come_from_torchs_generator() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(stem="small").state_dict())
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("name", "suggestion"), [("resnet51", "resnet50"), ("renset18", "resnet18")])
def test_unknown_name_gives_suggestions(name: str, suggestion: str) -> None:
    with pytest.raises(SagaError, match=rf"'{name}'; perhaps .*\b{suggestion}\b"):
        EncoderConfig(name=name)


def test_unknown_name_without_suggestions() -> None:
    with pytest.raises(SagaError, match=r"not a timm model: '#'$"):
        EncoderConfig(name="#")


def test_std_must_be_positive() -> None:
    with pytest.raises(SagaError, match=r"std must be positive, got \(0.2, 0.0, 0.2\)"):
        EncoderConfig(std=(0.2, 0.0, 0.2))


@pytest.mark.parametrize("name", ["test_mambaout", "mambaout_femto"])
def test_channels_last_map_is_turned(name: str) -> None:
    """timm's NHWC families have four axes, but their last one is the channels."""
    encoder = build(name).eval()
    with torch.no_grad():
        a = encoder.features(torch.randn(2, 3, 64, 96))
        assert a.shape == (2, encoder.backbone.num_features, 2, 3)
        expected = encoder.backbone.forward_head(a.permute(0, 2, 3, 1), pre_logits=True)
        assert torch.equal(encoder.pool(a), expected)


@pytest.mark.parametrize(
    "args",
    [
        {"nonsense": 1},
        {"num_classes": 10},
        {"layers": 3},
        {"pretrained_cfg": "nonsense"},
        {"layers": [1, 1]},
        {"act_layer": "nonsense"},
        {"output_stride": 7},
        {"global_pool": "nonsense"},
        {"in_chans": 1},
        {"features_only": True},
        {"global_pool": ""},
    ],
    ids=str,
)
def test_bad_arguments_are_named(args: dict[str, Any]) -> None:
    with pytest.raises(SagaError, match=r"('resnet18'|encoder.args).*" + next(iter(args))):
        Encoder(EncoderConfig(name="resnet18", args=args))


def test_published_weights_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asks for published weights")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    assert build("test_resnet").dim == 96
    with pytest.raises(SagaError, match=r"encoder.args.pretrained is not allowed, it does not describe a network"):
        build("test_resnet", args={"pretrained": True})


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("channels", [16, 64, 128])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_stem_channels(name: str, channels: int, stem: Any) -> None:
    """The first convolution, its normalisation and what the first block takes change together."""
    args = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}
    encoder = Encoder(EncoderConfig(name=name, stem=stem, stem_channels=channels, args=args))
    backbone = encoder.backbone
    assert backbone.conv1.out_channels == backbone.bn1.num_features == channels
    output = 64 if name == "resnet50" else 16
    assert (backbone.layer1[0].downsample is None) == (channels == output)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, output)


def test_stem_padding() -> None:
    """solo-learn's networks for CIFAR: 34 x 34 after the first convolution."""
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    encoder = Encoder(EncoderConfig(name="resnet18", stem="small", stem_padding=2, args=args))
    assert encoder.backbone.conv1(torch.zeros(1, 3, 32, 32)).shape[-2:] == (34, 34)
    assert encoder.features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (5, 5)


@pytest.mark.parametrize("fields", [{"stem_channels": 0}, {"stem_padding": -1}])
def test_stem_numbers_are_checked(fields: dict[str, int]) -> None:
    with pytest.raises(SagaError, match=rf"encoder.{next(iter(fields))} .*got -?\d"):
        EncoderConfig(**fields)  # type: ignore[arg-type]
