"""What imported checkpoints are good for: training on, attention of a classifier, ContrastiveCrop's boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from import_runs import refusal, run_import
from layout_parts import rows
from layouts import LAYOUTS
from networks import dim, encoder, randomize
from safetensors.torch import save_file

from saga_fast import load_model
from saga_fast.checkpoint import checkpoint_config, read_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.loaders import BoxTable, ImageFolder

FAST = [
    "crop.size=32",
    "batch_size=8",
    "plain.epochs=0",
    "plain.warmup_epochs=0",
    "saga.epochs=1",
    "evaluate=null",
    "method.negatives=8",
]


@pytest.mark.parametrize("name", ["pycontrast insdis", "moco v2", "cmc cmc", "lightly simclr"])
def test_training_goes_on(name: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, yaml, run = LAYOUTS[name](), tmp_path / "imported.yaml", tmp_path / "run"
    out = run_import(layout.content, tmp_path, "--data", images / "train", "--config-out", yaml)
    capsys.readouterr()
    config = load_config(yaml)
    assert config == checkpoint_config(read_checkpoint(out), out)
    assert config.plain.epochs == read_checkpoint(out)["epoch"]
    sets = [text for text in FAST if "negatives" not in text or hasattr(config.method, "negatives")]
    arguments = ["train", "--config", str(yaml), "--ckpt", str(out), "--out", str(run), "--set", *sets]
    assert main(arguments) == 0
    kinds = [json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["renewal", "epoch"]


def test_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_import(LAYOUTS["moco v2"]().content, tmp_path)
    capsys.readouterr()
    assert main(["build-att", "--ckpt", str(out), "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err == (
        "saga-fast: error: no such image folder: (imported without --data: name the images)\n"
    )


def test_set(tmp_path: Path, images: Path) -> None:
    sets = ["--set", "method.temperature=0.5", "crop.size=48", "--data", images / "train"]
    config = checkpoint_config(read_checkpoint(out := run_import(LAYOUTS["moco v2"]().content, tmp_path, *sets)), out)
    assert (config.method.temperature, config.crop.size) == (0.5, 48)  # type: ignore[attr-defined]
    assert config.data.train == str(images / "train")


def test_a_new_queue_is_the_same_each_time(tmp_path: Path) -> None:
    content = LAYOUTS["moco v2 released"]().content
    first, second = (
        read_checkpoint(run_import(content, tmp_path, "--set", "method.queue_size=64"))["model"]["queue"] for _ in "ab"
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(64))


def test_pycontrast_without_its_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A linear head alone may be InsDis' or MoCo's: the user decides."""
    content = LAYOUTS["pycontrast insdis"]().content
    content = {"model": content["model"], "epoch": 200}
    assert load_model(run_import(content, tmp_path)).method == "insdis"
    assert "for MoCo, --set method.name=moco" in capsys.readouterr().out
    assert (
        load_model(run_import(content, tmp_path, "--set", "method.name=moco", "method.queue_size=8")).method == "moco"
    )


def test_half_precision_weights(tmp_path: Path) -> None:
    layout = LAYOUTS["moco v2 released"]()
    state = layout.content["state_dict"]
    layout.content["state_dict"] = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    model = load_model(run_import(layout.content, tmp_path))
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.projector(model.encoder(x)), layout.z[0](x), rtol=0.05, atol=0.02)


# ---------------------------------------------------------------- classifiers and bare encoders


def test_a_classifier_gives_its_predicted_class(tmp_path: Path, images: Path) -> None:
    layout = LAYOUTS["torchvision"]()
    out = run_import(layout.content, tmp_path, "--data", images / "train")
    model = load_model(out)
    table = tmp_path / "a.safetensors"
    assert main(["build-att", "--ckpt", str(out), "--out", str(table), "--size", "32"]) == 0
    assert set(BoxTable.open(table).pseudo_label) <= set(range(20))
    with torch.no_grad():
        x = torch.rand(4, 3, 48, 48)
        assert torch.equal(model.projector(model.encoder(x)).argmax(1), layout.z[0](x).argmax(1))


def test_a_classifier_as_provider(tmp_path: Path, images: Path, tiny_yaml: Path) -> None:
    """Table 2's last row: D^att from the classifier, in the training of another network."""
    out = run_import(LAYOUTS["torchvision"]().content, tmp_path, "--data", images / "train")
    sets = ["attention.provider=supervised", f"attention.provider_ckpt={out}", "evaluate=null", "saga.epochs=1"]
    run = tmp_path / "run"
    assert main(["train", "--config", str(tiny_yaml), "--out", str(run), "--set", *sets]) == 0
    assert set(BoxTable.open(run / "att" / "epoch_0001.safetensors").pseudo_label) <= set(range(20))


def test_a_classifier_is_not_trained_without_labels(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml, run, flat = tmp_path / "c.yaml", tmp_path / "run", tmp_path / "flat"
    out = run_import(LAYOUTS["torchvision"]().content, tmp_path, "--data", images / "train", "--config-out", yaml)
    flat.mkdir()
    for number, path in enumerate(sorted((images / "train").rglob("*.jpg"))[:8]):
        (flat / f"{number}.jpg").write_bytes(path.read_bytes())
    capsys.readouterr()
    words = ["--ckpt", str(out), "--out", str(run), "--set", f"data.train={flat}"]
    assert main(["train", "--config", str(yaml), *words]) == 2
    assert f"method supervised needs labelled images, one folder per class: {flat} has none" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize("method", ["simclr", "mocov2", "insdis", "pirl", "invspread"])
def test_an_encoder_without_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    network = randomize(encoder())
    content = dict(network.state_dict())
    assert "--set method.name=simclr" in refusal(content, tmp_path, capsys)
    model = load_model(run_import(content, tmp_path, "--set", f"method.name={method}"))
    printed = capsys.readouterr().out
    assert "projector: random" in printed
    assert model.method == method
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(x), network(x), rtol=1e-5, atol=1e-5)
    if method == "mocov2":
        for own, key in zip(
            model.projector.parameters(), model.get_submodule("key_projector").parameters(), strict=True
        ):
            assert torch.equal(own, key)


def test_a_network_of_timm(tmp_path: Path) -> None:
    import timm

    network = randomize(timm.create_model("test_convnext", num_classes=7))
    content = {"epoch": 5, "arch": "test_convnext", "state_dict": network.state_dict(), "args": None}
    x = torch.rand(2, 3, 64, 64)
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    for out in (
        run_import(content, tmp_path),
        run_import(tmp_path / "bare.safetensors", tmp_path, "--set", "encoder.name=test_convnext"),
    ):
        model = load_model(out)
        with torch.no_grad():
            torch.testing.assert_close(model.projector(model.encoder(x)), network(x), rtol=1e-5, atol=1e-5)


def test_full_size_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchvision's own ResNet-18 needs no arguments."""
    from torchvision.models import resnet18

    out = run_import(dict(resnet18().state_dict()), tmp_path)
    config = checkpoint_config(read_checkpoint(out), out)
    assert (config.encoder.name, config.encoder.stem, config.encoder.args) == ("resnet18", "imagenet", {})
    assert "supervised, resnet18, imagenet stem\n" in capsys.readouterr().out


# ---------------------------------------------------------------- ContrastiveCrop's boxes


def test_boxes(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[h_min, w_min, h_max, w_max], whose far edges are the last pixels inside, of images of 32 px (CIFAR)."""
    layout, path = LAYOUTS["contrastivecrop simclr"](), tmp_path / "boxes.safetensors"
    run_import(layout.content, tmp_path, "--data", images / "train", "--boxes-out", path)
    table = BoxTable.open(path)
    table.check(ImageFolder(images / "train").fingerprint, 41)
    np.testing.assert_allclose(table.boxes[0], [0.0, 0.25, 15 / 16 + 1 / 32, 0.25 + 1 / 32], atol=1e-6)
    assert table.found.sum() == 40
    np.testing.assert_array_equal(table.boxes[7], [0, 0, 1, 1])
    assert f"{path}: 41 boxes" in capsys.readouterr().out


def test_boxes_of_other_images(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = LAYOUTS["contrastivecrop simclr"]().content
    options = ["--data", images / "val", "--boxes-out", tmp_path / "boxes"]
    assert "boxes has 41 rows" in refusal(content, tmp_path, capsys, *options)
    assert not (tmp_path / "boxes").exists()


def test_rows_are_unit_vectors() -> None:
    torch.testing.assert_close(rows(3).norm(dim=1), torch.ones(3))
    assert dim(encoder()) == 16
