"""The linear probe against softmax regression in NumPy, its presets, and that a killed probe ends the same."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from saga_fast import load_model
from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel
from saga_fast.evaluate.linear import Accuracy, ProbeLoaders, linear_probe
from saga_fast.evaluate.probe_file import ProbeFile
from saga_fast.evaluate.protocols import PROTOCOLS, choose_protocol
from saga_fast.loaders import BadImages, CentrePlan, CropPlan, ImageFolder, Loader, LoaderOptions, open_loader
from saga_fast.loaders.order import epoch_order

Float64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def ckpt(finished_run: Path) -> Path:
    return finished_run / "last.pt"


@pytest.fixture(scope="module")
def six(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (6 classes of 5) and val (6 of 2)."""
    root = tmp_path_factory.mktemp("six")
    make_images(root / "train", classes=tuple("abcdef"), per_class=5)
    make_images(root / "val", classes=tuple("abcdef"), per_class=2, seed=1)
    return root


def loaders(root: Path, batch_size: int, *, cached: bool = True) -> ProbeLoaders:
    train, val = ImageFolder(root / "train"), ImageFolder(root / "val")
    bad = BadImages(train, max_fraction=0.5)
    crops, centre = CropPlan(size=16, seed=0, num_views=1), CentrePlan(size=16)
    options = LoaderOptions(batch_size=batch_size, threads=1)
    return ProbeLoaders(
        train=open_loader("folder", train, crops, options, shuffle=True, bad=bad),
        val=open_loader("folder", val, centre, options),
        cached=open_loader("folder", train, centre, options, bad=bad) if cached else None,
    )


def features(frozen: FrozenModel, loader: Loader) -> Float64:
    return torch.cat([frozen.features(batch)[0][0] for batch in loader]).double().numpy()


def test_presets() -> None:
    numbers = {
        name: (c.phase.epochs, c.phase.lr, c.phase.milestones, c.phase.gamma, c.batch_size, c.peak_lr, c.weight_decay)
        for name, c in PROTOCOLS.items()
    }
    assert numbers == {
        "moco": (100, 30.0, (60, 80), 0.1, 256, 30.0, 0.0),
        "pycontrast": (60, 30.0, (30, 40, 50), 0.2, 256, 30.0, 0.0),
        "simclr": (90, 0.1, (), 0.1, 4096, 1.6, 1e-6),
        "lightly": (90, 0.1, (), 0.1, 256, 0.1, 0.0),
    }
    assert {c.momentum for c in PROTOCOLS.values()} == {0.9}
    assert [name for name, c in PROTOCOLS.items() if c.nesterov] == ["simclr"]
    assert {name: c.init_std for name, c in PROTOCOLS.items()} == {
        "moco": 0.01,
        "pycontrast": None,
        "simclr": 0.0,
        "lightly": None,
    }
    assert {name: c.scale for name, c in PROTOCOLS.items() if c.scale != (0.08, 1.0)} == {"pycontrast": (0.2, 1.0)}
    assert all(name == c.name and c.centre == 0.875 for name, c in PROTOCOLS.items())


def test_overrides() -> None:
    assert choose_protocol("moco", epochs=10).phase.milestones == (6, 8)
    assert choose_protocol("simclr", batch_size=512).peak_lr == pytest.approx(0.2)
    assert choose_protocol("simclr", batch_size=512, lr=0.7).peak_lr == 0.7
    assert choose_protocol("moco", centre="whole").centre is None
    for values, words in (
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"batch_size": 0}, "batch"),
    ):
        with pytest.raises(SagaError, match=words):
            choose_protocol("moco", **values)
    with pytest.raises(SagaError, match="no such protocol: 'mocco', have moco"):
        choose_protocol("mocco")


def softmax_regression(
    features: Float64, labels: Float64, weight: Float64, bias: Float64, batches: list[Any], rates: list[float]
) -> tuple[Float64, Float64]:
    """SGD with momentum 0.9 on the mean cross-entropy, one step per batch, from the textbook."""
    speed_w, speed_b = np.zeros_like(weight), np.zeros_like(bias)
    for rows, rate in zip(batches, rates, strict=True):
        logits = features[rows] @ weight.T + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(rows)), labels[rows].astype(int)] -= 1.0
        p /= len(rows)
        speed_w, speed_b = 0.9 * speed_w + p.T @ features[rows], 0.9 * speed_b + p.sum(0)
        weight, bias = weight - rate * speed_w, bias - rate * speed_b
    return weight, bias


def test_cached_probe_is_softmax_regression(ckpt: Path, six: Path, tmp_path: Path) -> None:
    config = choose_protocol("moco", epochs=5, batch_size=8, lr=0.5)
    images = loaders(six, 8)
    frozen = FrozenModel(model=load_model(ckpt))
    history = linear_probe(frozen, images, config, seed=3, every=2, out=tmp_path)
    assert [test.epoch for test in history] == [2, 4, 5]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layer = torch.nn.Linear(16, 6)
        torch.nn.init.normal_(layer.weight, std=0.01)
    assert images.cached is not None
    known, tests = features(frozen, images.cached), features(frozen, images.val)
    labels = images.cached.source.labels.astype(np.float64)
    orders = [epoch_order(30, seed=3, epoch=e, shuffle=True, without=np.empty(0, np.int64)).indices() for e in range(5)]
    batches = [order[begin : begin + 8] for order in orders for begin in range(0, 30, 8)]
    rates = [0.5] * 12 + [0.05] * 4 + [0.005] * 4  # milestones 60 and 80 of 100 are 3 and 4 of 5
    start = layer.weight.detach().double().numpy(), np.zeros(6)
    weight, bias = softmax_regression(known, labels, *start, batches, rates)
    kept = torch.load(tmp_path / "probe.pt", weights_only=True)["classifier"]
    np.testing.assert_allclose(kept["weight"].numpy(), weight, rtol=1e-3, atol=1e-4)  # float32 against float64
    np.testing.assert_allclose(kept["bias"].numpy(), bias, rtol=1e-3, atol=1e-4)

    ranked = np.argsort(-(tests @ weight.T + bias), axis=1)
    hits = ranked == images.val.source.labels[:, None]
    assert (history[-1].top1, history[-1].top5) == (hits[:, 0].mean(), hits[:, :5].any(1).mean())


@pytest.mark.parametrize("use_cache", [False, True])
def test_a_killed_probe_ends_the_same(
    ckpt: Path, six: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_cache: bool
) -> None:
    """Also with an image that cannot be decoded, which the epochs after the first leave out."""
    images = tmp_path / "images"
    shutil.copytree(six, images)
    (images / "train" / "c" / "002.jpg").write_bytes(b"broken")
    config = choose_protocol("lightly", epochs=4, batch_size=8, lr=0.3)

    def probe(out: Path | None) -> list[Accuracy]:
        frozen = FrozenModel(model=load_model(ckpt))
        return linear_probe(frozen, loaders(images, 8, cached=use_cache), config, every=1, out=out)

    whole = probe(tmp_path / "whole")
    save, calls = ProbeFile.save, 0

    def stop(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ProbeFile, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            probe(tmp_path / "killed")
    assert torch.load(tmp_path / "killed" / "probe.pt", weights_only=True)["epoch"] == 2
    assert probe(tmp_path / "killed") == whole
    ends = [torch.load(tmp_path / name / "probe.pt", weights_only=True)["classifier"] for name in ("whole", "killed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ("weight", "bias"))
    assert probe(tmp_path / "killed") == whole  # finished: nothing is done again
    assert probe(None) == whole


def test_the_encoder_is_frozen_and_in_eval_mode(ckpt: Path, six: Path) -> None:
    model = load_model(ckpt).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    protocol = choose_protocol("moco", epochs=2, batch_size=8, lr=0.1)
    linear_probe(FrozenModel(model=model), loaders(six, 8, cached=False), protocol)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_loss_that_explodes_is_refused(ckpt: Path, six: Path) -> None:
    config = replace(choose_protocol("moco", epochs=9, batch_size=8, lr=1e30), weight_decay=1e9)
    with pytest.raises(SagaError, match=r"not finite in epoch .* lower --lr"):
        linear_probe(FrozenModel(model=load_model(ckpt)), loaders(six, 8), config)


# ---------------------------------------------------------------- the command


def run(arguments: list[Any]) -> int:
    return main(["eval", "linear", "--epochs", "2", "--batch-size", "8", "--lr", "0.1", *map(str, arguments)])


def test_command(ckpt: Path, six: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "linear.json"
    basic = ["--ckpt", ckpt, "--data", six, "--json", file]
    assert run([*basic, "--out", tmp_path / "probe"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("linear probe (moco, 2 epochs, centre 0.875 test crop): top-1 ")
    assert "top-5" in out
    content = json.loads(file.read_text())
    (row,) = content["rows"]
    named = {key: row[key] for key in ("protocol", "probe", "features", "views", "test_crop", "probe_epochs", "epoch")}
    assert named == {
        "protocol": "linear",
        "probe": "moco",
        "features": "augmented",
        "views": "whole",
        "test_crop": "centre 0.875",
        "probe_epochs": 2,
        "epoch": 5,
    }
    assert {"hardware", "versions", "commit", "command", "checkpoint", "data"} <= content.keys()
    assert run([*basic, "--cached", "--test-crop", "whole"]) == 0
    assert "cached features: an estimate" in capsys.readouterr().out
    assert json.loads(file.read_text())["rows"][0]["features"] == "cached"
    assert json.loads(file.read_text())["rows"][0]["test_crop"] == "whole image"


@pytest.mark.parametrize("views", ["att", "both"])
@pytest.mark.parametrize("cached", [[], ["--cached"]])
def test_views(
    ckpt: Path, images: Path, views: str, cached: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "probe"]
    assert run(["--ckpt", ckpt, "--data", images, "--views", views, *cached, *out]) == 0
    assert "top-5" not in capsys.readouterr().out  # two classes
    kept = torch.load(tmp_path / "probe" / "probe.pt", weights_only=True)
    assert kept["classifier"]["weight"].shape == (2, 32 if views == "both" else 16)


def test_command_refuses(
    ckpt: Path, six: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(arguments: list[Any], words: str) -> None:
        capsys.readouterr()
        assert run(["--ckpt", ckpt, *arguments]) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert words in err

    data = ["--data", six]
    refuses(["--data", six / "train"], "needs validation images")
    refuses([*data, "--epochs", "0"], "--epochs must be positive, got 0")
    refuses([*data, "--test-crop", "1.5"], "--test-crop")
    refuses([*data, "--test-crop", "half"], "'half'")
    refuses([*data, "--table", "t.safetensors"], "--views att or both")
    refuses(["--data", six / "train", "--val", images / "val"], "class 'cat'")
    refuses(["--data", six / "train", "--val", six / "val" / "a"], "needs labelled images")
    assert run(["--ckpt", ckpt, *data, "--out", tmp_path / "probe"]) == 0
    refuses([*data, "--out", tmp_path / "probe", "--seed", "4"], "another seed")
    (tmp_path / "probe" / "probe.pt").write_bytes(b"something")
    refuses([*data, "--out", tmp_path / "probe"], "is not a saga-fast probe")
