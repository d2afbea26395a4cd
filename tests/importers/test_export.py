"""Export: other projects' networks load it, and importing it again gives the same z."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from import_runs import run_import
from layouts import LAYOUTS
from networks import encoder, torchvision_resnet
from safetensors.torch import load_file

from saga_fast import load_model
from saga_fast.cli import main

X = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def exported(ckpt: Path, target: str, out: Path, *options: str) -> Any:
    assert main(["export", str(ckpt), "--to", target, "--out", str(out), *options]) == 0
    return load_file(out) if out.suffix == ".safetensors" else torch.load(out, weights_only=True)


def refused(capsys: pytest.CaptureFixture[str], ckpt: Path, target: str, out: Path, *options: str) -> str:
    capsys.readouterr()
    assert main(["export", str(ckpt), "--to", target, "--out", str(out), *options]) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def simclr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_import(LAYOUTS["sthalles"]().content, tmp_path_factory.mktemp("simclr"))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_torchvision_loads_it(simclr: Path, tmp_path: Path, ending: str) -> None:
    state = exported(simclr, "torchvision", tmp_path / f"f{ending}")
    network = encoder()
    network.load_state_dict(state)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(X), load_model(simclr).encoder(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["sthalles", "dino vit", "vit dinov2 registers"])
def test_timm_loads_it(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = run_import(LAYOUTS[layout]().content, tmp_path)
    state = exported(ckpt, "timm", tmp_path / "f.pt")
    call = next(line for line in capsys.readouterr().out.splitlines() if "create_model" in line).split("  ")[-1]
    network = eval(call, {"timm": timm})
    network.load_state_dict(state)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(X), load_model(ckpt).encoder(X), rtol=1e-5, atol=1e-5)


def test_moco_linear_probe_code_loads_it(simclr: Path, tmp_path: Path) -> None:
    """facebookresearch/moco: keep what begins with module.encoder_q but not .fc, load, only fc may be missing."""
    content = exported(simclr, "moco", tmp_path / "f.pth.tar")
    assert (content["arch"], content["epoch"]) == ("resnet18", 100)
    prefix = "module.encoder_q."
    assert all(name.startswith(prefix) for name in content["state_dict"])
    names = {name.removeprefix(prefix): tensor for name, tensor in content["state_dict"].items()}
    kept = {name: tensor for name, tensor in names.items() if not name.startswith("fc")}
    network = torchvision_resnet(5)
    result = network.load_state_dict(kept, strict=False)
    assert set(result.missing_keys) == {"fc.weight", "fc.bias"}
    assert result.unexpected_keys == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("sthalles", "timm"),
        ("moco v1", "moco"),
        ("moco v2", "moco"),
        ("moco v2", "torchvision"),
        ("lightly simclr", "moco"),
        ("lightly simclr", "timm"),
        ("invspread", "torchvision"),
        ("spijkervet", "timm"),
        ("contrastivecrop simclr", "torchvision"),
    ],
)
def test_there_and_back(name: str, target: str, tmp_path: Path) -> None:
    ckpt = run_import(LAYOUTS[name]().content, tmp_path)
    model = load_model(ckpt)
    options = [] if target == "moco" else ["--with-head"]
    exported(ckpt, target, tmp_path / "f.pt", *options)
    (tmp_path / "back").mkdir()
    sets = [] if target == "moco" else ["--set", f"method.name={model.method}"]
    back = load_model(run_import(tmp_path / "f.pt", tmp_path / "back", *sets))
    with torch.no_grad():
        torch.testing.assert_close(back.projector(back.encoder(X)), model.projector(model.encoder(X)))


def test_a_classifier_there_and_back(tmp_path: Path) -> None:
    ckpt = run_import(LAYOUTS["torchvision"]().content, tmp_path)
    state = exported(ckpt, "torchvision", tmp_path / "f.pth", "--with-head")
    theirs = LAYOUTS["torchvision"]().content
    assert state.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items())


def test_cmc_has_two_encoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = LAYOUTS["cmc cmc"]()
    ckpt, out = run_import(layout.content, tmp_path), tmp_path / "f.pth"
    assert "--branch luminance or chrominance" in refused(capsys, ckpt, "torchvision", out)
    state = exported(ckpt, "torchvision", out, "--branch", "chrominance")
    assert torch.equal(state["conv1.weight"], layout.content["model"]["encoder.module.ab_to_l.conv1.weight"])
    assert len(exported(ckpt, "moco", out, "--branch", "luminance")["state_dict"]) > len(state)


def test_refusals(simclr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.pth"
    assert "--branch is for CMC" in refused(capsys, simclr, "timm", out, "--branch", "luminance")
    assert "not f.safetensors" in refused(capsys, simclr, "moco", tmp_path / "f.safetensors")
    assert "the command reads it" in refused(capsys, simclr, "timm", simclr)
    network = timm.create_model("test_convnext", num_classes=7)
    content = {"arch": "test_convnext", "state_dict": network.state_dict()}
    ckpt = run_import(content, tmp_path)
    for target in ("torchvision", "moco"):
        assert "--to timm" in refused(capsys, ckpt, target, out)
    assert exported(ckpt, "timm", out, "--with-head").keys() == network.state_dict().keys()


def test_a_resnet_that_torchvision_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = timm.create_model("resnet18d", num_classes=7)
    content = {"arch": "resnet18d", "state_dict": network.state_dict()}
    ckpt = run_import(content, tmp_path, "--set", "encoder.name=resnet18d")
    assert "torchvision has no ResNet like this" in refused(capsys, ckpt, "torchvision", tmp_path / "f")
