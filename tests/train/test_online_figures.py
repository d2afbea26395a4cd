"""The online probe and RankMe in whole runs: they change nothing, come back after a kill, and are what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import Crash, assert_same_run, crash_at, figures, leaves, rows_of

from saga_fast.checkpoint import load_model, read_checkpoint, save_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.loaders import BoxTable, WholePlan, open_loader
from saga_fast.train import cycle, step
from saga_fast.train.cycle import train

METHODS = {
    "simclr": "method.name=simclr",
    "moco": "method={name: moco, projection_dim: 12, queue_size: 20, momentum: 0.9}",
    "mocov2": "method={name: mocov2, projection_dim: 12, queue_size: 20, momentum: 0.9}",
    "insdis": "method={name: insdis, projection_dim: 12, negatives: 16}",
    "pirl": "method={name: pirl, projection_dim: 12, negatives: 16, jigsaw_size: 24, jigsaw_patch: 7}",
    "cmc": "method={name: cmc, projection_dim: 12, negatives: 16, loss: nce}",
    "invspread": "method={name: invspread, projection_dim: 12}",
}
OFF = ["evaluate.online_probe=false", "evaluate.rankme=false"]
ONLINE = ("online", "rankme")


def without_online(run: Path) -> list[dict[str, Any]]:
    rows = [row for row in figures(run) if row["kind"] not in ONLINE]
    return [{key: value for key, value in row.items() if key != "online_top1"} for row in rows]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, ["saga.epochs=1"]) for name in METHODS),
        ("simclr", ["saga.epochs=1", "precision=bf16"]),
        ("simclr", ["saga.epochs=0", "precision=fp16", "crop.size=8"]),  # slow on a CPU
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_network_is_that_of_a_run_without(method: str, options: list[str], tiny_yaml: Path, tmp_path: Path) -> None:
    """Bit for bit, in all seven methods: weights, queues and banks, optimiser, random state, losses, kNN and boxes."""
    on, off = tmp_path / "on", tmp_path / "off"
    for out, switches in ((on, []), (off, OFF)):
        train(load_config(tiny_yaml, [f"out={out}", METHODS[method], *options, *switches]))
    with_probe, without = (read_checkpoint(out / "last.pt") for out in (on, off))
    assert with_probe.pop("online_probe")["classifier"]["weight"].any()
    for state in (with_probe, without):
        del state["config"], state["box_table"]  # the folder and the switches; the hash of a file that names last.pt's
    expected = dict(leaves(without))
    assert dict(leaves(with_probe)).keys() == expected.keys()
    for name, value in leaves(with_probe):
        assert torch.equal(value, expected[name]) if isinstance(value, torch.Tensor) else value == expected[name], name
    assert without_online(on) == without_online(off)
    for path in (off / "att").glob("*"):
        np.testing.assert_array_equal(BoxTable.open(on / "att" / path.name).boxes, BoxTable.open(path).boxes)
    assert not [row for row in figures(off) if row["kind"] in ONLINE]
    assert {row["online_top1"] for row in rows_of(off, "epoch")} == {None}


def test_figures_are_those_of_the_checkpoint(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    """Recomputed with NumPy from the checkpoint that each evaluation followed."""
    run = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={run}", "checkpoint.keep_every=2"]))
    kinds = [(row["kind"], row["epoch"]) for row in figures(run) if row["kind"] in ONLINE]
    assert kinds == [("rankme", 0), *((kind, epoch) for epoch in (2, 4, 5) for kind in ("rankme", "online"))]
    for epoch in (2, 4):  # before its first step, at epoch 0, the probe is not tested
        path = run / f"epoch_{epoch:04d}.pt"
        frozen = FrozenModel(model=load_model(path), channels_last=True)
        loaders = (open_loader("folder", images / name, WholePlan(size=16), batch_size=8) for name in ("train", "val"))
        (bank, _), (queries, labels) = (extract_features(frozen, loader) for loader in loaders)
        probe = read_checkpoint(path)["online_probe"]["classifier"]
        logits = queries["backbone"].numpy() @ probe["weight"].numpy().T + probe["bias"].numpy()
        (row,) = (row for row in rows_of(run, "online") if row["epoch"] == epoch)
        assert (row["top1"], row["images"]) == (float((logits.argmax(1) == labels.numpy()).mean()), 16)
        (row,) = (row for row in rows_of(run, "rankme") if row["epoch"] == epoch)
        for layer in ("backbone", "projector"):
            sigma = np.linalg.svd(bank[layer].numpy().astype(np.float64), compute_uv=False)
            share = sigma / sigma.sum() + 1e-7
            assert row[layer] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
        assert row["images"] == 41
    assert all(0.0 <= row["online_top1"] <= 1.0 for row in rows_of(run, "epoch"))


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Training and validation images of three classes, red, green and blue; validation has two of them."""
    rng = np.random.default_rng(0)
    for split, names in (("train", ("blue", "green", "red")), ("val", ("blue", "red"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 60, (20, 24, 3), np.uint8)
                pixels[..., ("red", "green", "blue").index(name)] += 180
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_probe_learns_classes_by_name(tiny_yaml: Path, colours: Path, tmp_path: Path) -> None:
    """Validation images whose classes are some of the training images', so that their numbers differ."""
    run = tmp_path / "run"
    data = f"data={{train: {colours / 'train'}, val: {colours / 'val'}, threads: 1}}"
    still = ["photometric={flip: 0.5}", "plain={epochs: 12, lr: 1.0e-4}", "saga.epochs=0", "evaluate.every=12"]
    train(load_config(tiny_yaml, [f"out={run}", data, *still]))
    (row,) = rows_of(run, "online")
    assert row["top1"] == 1.0
    top1 = [row["online_top1"] for row in rows_of(run, "epoch")]
    assert top1[-1] > max(top1[0], 0.9)


CRASHES = {"after some steps": (step, "sample_photometrics", 13), "in an evaluation": (cycle, "knn_accuracy", 3)}


@pytest.mark.parametrize("moment", CRASHES)
def test_crash_and_resume(
    moment: str, finished_run: Path, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the interrupted evaluation are not written twice, and the probe goes on to the bit."""
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}"])
    with monkeypatch.context() as patch:
        crash_at(patch, *CRASHES[moment])
        with pytest.raises(Crash):
            train(config)
    train(config, resume=True)
    assert_same_run(run, finished_run)
    assert "online_probe" in read_checkpoint(run / "last.pt")


def test_run_of_an_earlier_version_is_resumed(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint has no probe and its config no key: the probe begins where the run is resumed."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, step, "sample_photometrics", 13)
        with pytest.raises(Crash):
            train(load_config(tiny_yaml, [f"out={run}"]))
    state = read_checkpoint(run / "last.pt")
    del state["online_probe"], state["config"]["evaluate"]["online_probe"], state["config"]["evaluate"]["rankme"]
    save_checkpoint(run / "last.pt", {key: state[key] for key in state if key not in ("format", "version")})
    train(load_config(tiny_yaml, [f"out={run}"]), resume=True)
    assert [row["epoch"] for row in rows_of(run, "online")] == [2, 4, 5]


def test_unlabelled_images_have_no_probe(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    data.mkdir()
    for number, path in enumerate(sorted((images / "train").rglob("*.jpg"))):
        (data / f"{number}.jpg").write_bytes(path.read_bytes())
    train(load_config(tiny_yaml, [f"out={run}", f"data={{train: {data}, threads: 1}}", "saga.epochs=0"]))
    assert [row["online_top1"] for row in rows_of(run, "epoch")] == [None]
    assert "online_probe" not in read_checkpoint(run / "last.pt")


def test_probe_needs_no_validation_images(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={run}", "data.val=null", "saga.epochs=0"]))
    assert [row["kind"] for row in figures(run)] == ["epoch"]
    assert 0.0 <= rows_of(run, "epoch")[0]["online_top1"] <= 1.0


def test_values_are_checked(tiny_yaml: Path) -> None:
    for key in ("online_probe", "rankme"):
        with pytest.raises(SagaError, match=rf"evaluate\.{key}: .*valid boolean"):
            load_config(tiny_yaml, [f"evaluate.{key}=maybe"])
