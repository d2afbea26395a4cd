"""Corners of other projects' files: wrappers' names, rarer layouts, the input that their networks take."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from bank_layouts import BANK_LAYOUTS
from import_runs import refusal, run_import
from layout_parts import IMAGES, rows, state
from layouts import LAYOUTS
from networks import mlp, randomize
from test_layouts import assert_imported
from torch import Tensor, nn

from saga_fast import load_model
from saga_fast.checkpoint import checkpoint_config, read_checkpoint
from saga_fast.cli import main
from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.export import torchvision_name
from saga_fast.loaders import BoxTable
from saga_fast.models.encoder import Encoder, EncoderConfig

Capture = pytest.CaptureFixture[str]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imported_config(out: Path) -> TrainConfig:
    return checkpoint_config(read_checkpoint(out), out)


# ---------------------------------------------------------------- names of wrappers


def renamed(content: dict[str, Any], change: Any) -> dict[str, Any]:
    """The file with other names for the tensors of its networks."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {change(name): tensor for name, tensor in content.items()}
    kept = ("contrast", "lemniscate", "optimizer", "loss")
    return {
        key: renamed(value, change) if isinstance(value, dict) and key not in kept else value
        for key, value in content.items()
    }


def inside(name: str, *modules: str) -> str:
    """A name whose first module, of those given, was compiled."""
    for module in modules:
        if f"{module}." in name:
            return name.replace(f"{module}.", f"{module}._orig_mod.", 1)
    return name


WRAPPERS = {
    "compiled": ("torchvision", lambda name: f"_orig_mod.{name}"),
    "compiled, then data parallel": ("torchvision", lambda name: f"module._orig_mod.{name}"),
    "data parallel, then compiled": ("torchvision reference", lambda name: f"_orig_mod.module.{name}"),
    "a compiled backbone in Lightning": ("lightly simclr", lambda name: inside(name, "backbone")),
    "a compiled Lightning module": ("solo-learn simclr", lambda name: f"_orig_mod.{name}"),
    "compiled encoders of MoCo": ("moco v2", lambda name: inside(name, "encoder_q", "encoder_k")),
    "MoCo, compiled after that": ("moco v1", lambda name: name.replace("module.", "module._orig_mod.")),
    "compiled PyContrast": ("pycontrast insdis", lambda name: name.replace("module.", "_orig_mod.module.")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_names_are_ignored(name: str, tmp_path: Path) -> None:
    layout_name, change = WRAPPERS[name]
    layout = LAYOUTS[layout_name]()
    content = renamed(layout.content, change)
    assert "_orig_mod" in str(content)
    assert_imported(layout, run_import(content, tmp_path))


def test_two_tensors_of_a_name(tmp_path: Path, capsys: Capture) -> None:
    content = LAYOUTS["torchvision"]().content
    content["module.conv1.weight"] = content["conv1.weight"]
    assert "two tensors of a name" in refusal(content, tmp_path, capsys)


# ---------------------------------------------------------------- lightly's ResNetGenerator


def generator_network(splits: int, seed: int = 0) -> nn.Sequential:
    """The backbone of lightly's benchmark on CIFAR-10, of lightly's own modules, in train mode."""
    from lightly.models import ResNetGenerator

    network = ResNetGenerator("resnet-9", width=0.125, num_splits=splits)
    backbone = randomize(nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1)), seed).train()
    generator = torch.Generator().manual_seed(seed + 9)
    for name, buffer in backbone.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=generator)  # other statistics in each split
    return backbone


def assert_is_network(out: Path, network: nn.Sequential, head: nn.Module) -> None:
    network.eval(), head.eval()
    model = load_model(out)
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = head(network(x).flatten(1))
        torch.testing.assert_close(model.projector(model.encoder(x)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
def test_lightlys_own_resnet(tmp_path: Path, capsys: Capture, wrapper: str) -> None:
    from lightly.models.modules import SimCLRProjectionHead

    network, head = generator_network(0), randomize(SimCLRProjectionHead(64, 24, 12))
    content = {"epoch": 199, "state_dict": state(network, f"{wrapper}backbone.") | state(head, "projection_head.")}
    out = run_import(content, tmp_path)
    config = imported_config(out)
    assert (config.encoder.stem, config.encoder.stem_relu, config.encoder.stem_channels) == ("small", False, 8)
    assert (config.crop.size, config.encoder.mean, config.encoder.std) == (32, IMAGENET_MEAN, IMAGENET_STD)
    assert config.method.temperature == 0.5  # type: ignore[attr-defined]
    assert "ImageNet's mean and std, as in the project's benchmark" in capsys.readouterr().out
    assert_is_network(out, network, head)


def test_lightlys_own_resnet_with_split_batch_norm(tmp_path: Path) -> None:
    network, keys, head = generator_network(2), generator_network(2, seed=1), randomize(mlp(64, 64, 12))
    tensors = state(network, "backbone.") | state(keys, "backbone_momentum.")
    for name in ("projection_head", "projection_head_momentum"):
        tensors |= state(head, f"{name}.layers.")
    tensors["criterion.memory_bank.bank"] = rows(16).T.contiguous()
    tensors["criterion.memory_bank.bank_ptr"] = torch.tensor([2])
    out = run_import({"epoch": 199, "state_dict": tensors}, tmp_path)
    method: Any = imported_config(out).method
    assert (method.name, method.temperature, method.momentum) == ("mocov2", 0.1, 0.99)
    assert_is_network(out, network, head)
    means = load_model(out).state_dict()["key_encoder.backbone.bn1.running_mean"]
    torch.testing.assert_close(means, keys.eval().state_dict()["1.running_mean"][:8])


def test_a_stem_without_relu_needs_a_resnet() -> None:
    with pytest.raises(SagaError, match="stem_relu false needs a ResNet"):
        Encoder(EncoderConfig(name="test_convnext", stem_relu=False))


# ---------------------------------------------------------------- the input of timm's networks


@pytest.mark.parametrize("name", ["mobilenetv1_100", "test_convnext", "test_convnext.r160_in1k"])
def test_timms_networks_get_their_own_input(tmp_path: Path, capsys: Capture, name: str) -> None:
    content = {"arch": name, "state_dict": timm.create_model(name.partition(".")[0], num_classes=7).state_dict()}
    config = imported_config(run_import(content, tmp_path))
    theirs: Any = timm.get_pretrained_cfg(name)
    assert (config.encoder.mean, config.encoder.std) == (theirs.mean, theirs.std) == ((0.5,) * 3, (0.5,) * 3)
    assert config.crop.size == theirs.input_size[-1]
    printed = capsys.readouterr().out
    assert f"mean [0.5,0.5,0.5], std [0.5,0.5,0.5]: timm's of {name}" in printed
    assert f"centre crop of {theirs.crop_pct:g}" in printed


def test_vision_transformer_of_timm(tmp_path: Path, make_images: Any) -> None:
    """Its classifier, and boxes from the attention of its class token."""
    network = timm.create_model("test_vit", num_classes=7).eval()
    randomize(network)
    out = run_import({"arch": "test_vit", "state_dict": network.state_dict()}, tmp_path)
    model = load_model(out)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model.projector(model.encoder(x)), network(x), rtol=1e-4, atol=1e-5)
    images = make_images(tmp_path / "images")
    command = [
        "build-att",
        "--ckpt",
        out,
        "--data",
        images,
        "--out",
        tmp_path / "boxes.safetensors",
        "--score",
        "token",
    ]
    assert main([str(part) for part in command]) == 0
    assert BoxTable.open(tmp_path / "boxes.safetensors").metadata["attention_score"] == "token"


def test_options_of_timms_training_come_first(tmp_path: Path) -> None:
    options = argparse.Namespace(mean=[0.1, 0.2, 0.3], std=None, img_size=128, crop_pct=1.0)
    network = timm.create_model("test_convnext", num_classes=7)
    content = {"arch": "test_convnext", "state_dict": network.state_dict(), "args": options}
    config = imported_config(run_import(content, tmp_path))
    assert (config.encoder.mean, config.encoder.std, config.crop.size) == ((0.1, 0.2, 0.3), (0.5,) * 3, 128)


INPUTS = {
    "torchvision": "input of 224 px, mean [0.485,0.456,0.406], std [0.229,0.224,0.225]: ImageNet's",
    "moco v2": "input of 224 px, mean [0.485,0.456,0.406], std [0.229,0.224,0.225]: ImageNet's",
    "invspread": "input of 32 px, mean [0.4914,0.4822,0.4465], std [0.2023,0.1994,0.201]: CIFAR-10's, assumed",
    "sthalles": "input of 96 px, mean [0,0,0], std [1,1,1]: STL-10's size, not normalised",
    "solo-learn simclr cifar": "std [0.247,0.243,0.261]: CIFAR-10's in the project's code, assumed",
}


@pytest.mark.parametrize("name", INPUTS)
def test_the_input_is_said(tmp_path: Path, capsys: Capture, name: str) -> None:
    run_import(LAYOUTS[name]().content, tmp_path)
    assert INPUTS[name] in capsys.readouterr().out
    run_import(LAYOUTS[name]().content, tmp_path, "--set", "crop.size=48")
    assert "input of 48 px" in (printed := capsys.readouterr().out) and "as given by --set" in printed


# ---------------------------------------------------------------- losses and networks of the bank methods


def test_invspread_on_stl(tmp_path: Path, capsys: Capture) -> None:
    content = LAYOUTS["invspread"]().content
    torch.save(content, tmp_path / "stl_batch_0nn_128_temp_0.1_km_1_alr_best.t")
    error = refusal(tmp_path / "stl_batch_0nn_128_temp_0.1_km_1_alr_best.t", tmp_path, capsys)
    assert "7 x 7 of 12 x 12" in error
    run_import(content, tmp_path)
    assert "on STL-10, the network pools the top left 7 x 7" in capsys.readouterr().out


@pytest.mark.parametrize(("z", "loss"), [(-1.0, "softmax"), (20.0, "nce")])
@pytest.mark.parametrize("name", ["vissl npid", "vissl pirl"])
def test_vissls_loss(tmp_path: Path, name: str, z: float, loss: str) -> None:
    content = LAYOUTS[name]().content
    content["loss"]["nce_average.params"][2] = z
    out = run_import(content, tmp_path)
    assert imported_config(out).method.loss == loss  # type: ignore[attr-defined]
    assert ("bank.log_z" in load_model(out).state_dict()) == (loss == "nce")


@pytest.mark.parametrize("name", ["lemniscate", "lemniscate cifar"])
def test_lemniscates_full_softmax(tmp_path: Path, capsys: Capture, name: str) -> None:
    layout = BANK_LAYOUTS[name]()
    layout.content["lemniscate"] = {"params": torch.tensor([0.1, 0.6]), "memory": rows(IMAGES)}
    layout.expected = {"bank.rows": rows(IMAGES)}
    layout.numbers = {"loss": "softmax", "temperature": 0.1, "bank_momentum": 0.6, "negatives": 65536}
    assert_imported(layout, run_import(layout.content, tmp_path))
    assert "trained with the softmax over all rows" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["encoder.module.l_to_ab.", "encoder.module."])
def test_cmcs_alexnet_is_named(tmp_path: Path, capsys: Capture, prefix: str) -> None:
    content = LAYOUTS["cmc cmc"]().content
    content["model"] = {
        f"{prefix}conv_block_1.0.weight": torch.ones(48, 1, 11, 11),
        f"{prefix}fc6.0.weight": torch.ones(2),
    }
    assert "an AlexNet, which saga-fast does not support" in refusal(content, tmp_path, capsys)


# ---------------------------------------------------------------- export


@pytest.mark.parametrize(
    ("name", "args", "arch"),
    [
        ("resnet50", {}, "resnet50"),
        ("resnet50", {"cardinality": 32, "base_width": 4}, "resnext50_32x4d"),
        ("resnet101", {"cardinality": 32, "base_width": 8}, "resnext101_32x8d"),
        ("resnet101", {"cardinality": 64, "base_width": 4}, "resnext101_64x4d"),
        ("resnet50", {"base_width": 128}, "wide_resnet50_2"),
        ("resnet101", {"base_width": 128}, "wide_resnet101_2"),
        ("resnext50_32x4d", {}, "resnext50_32x4d"),
    ],
)
def test_arch_is_torchvisions_name(name: str, args: dict[str, Any], arch: str) -> None:
    assert torchvision_name(EncoderConfig(name=name, args=args)) == arch
    ours = Encoder(EncoderConfig(name=name, args=args)).backbone.state_dict()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)().state_dict()
    shapes = {key: tensor.shape for key, tensor in theirs.items() if not key.startswith("fc.")}
    assert {key: tensor.shape for key, tensor in ours.items()} == shapes


def test_export_writes_it(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.resnext50_32x4d(num_classes=3).state_dict()
    out = run_import({name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()}, tmp_path)
    assert main(["export", str(out), "--to", "moco", "--out", str(tmp_path / "f.pth")]) == 0
    assert torch.load(tmp_path / "f.pth", weights_only=True)["arch"] == "resnext50_32x4d"
