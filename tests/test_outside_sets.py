"""The outside sets and their study, on small stand-ins for the packages' pictures."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from benchmarks.pages import claims as pages
from benchmarks.pages.study_rows import StudyRows
from benchmarks.study import claims, debian, imagenet_classifier
from benchmarks.study.claims import stages
from benchmarks.study.debian import BACKGROUNDS, FASHION, STAMPS, unpacked
from benchmarks.study.outside import SPLITS, STAMP_FOLDERS, OutsideConfig, make_outside_data
from saga_fast.checkpoint import load_model
from saga_fast.demo.data import demo_boxes
from saga_fast.errors import SagaError
from saga_fast.loaders import ImageFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders like those of the unpacked packages, with pictures of noise."""
    root = tmp_path_factory.mktemp("packages")
    rng = np.random.default_rng(0)
    nature = root / BACKGROUNDS / "usr/share/backgrounds/mate/nature"
    nature.mkdir(parents=True)
    for name in ("Aqua", "Dune"):
        noise = Image.fromarray(rng.integers(0, 255, (20, 32, 3), dtype=np.uint8))
        noise.resize((640, 400)).save(nature / f"{name}.jpg")
    items = root / FASHION / "usr/share/datasets/fashion-mnist"
    items.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[:, 4:24, 8:20] = rng.integers(40, 255, (count, 20, 12))
        content = struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        (items / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        labels = struct.pack(">2i", 2049, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (items / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    stamps = root / STAMPS / "usr/share/tuxpaint/stamps"
    for number, folder in enumerate(folders[0] for folders in STAMP_FOLDERS.values()):
        (stamps / folder).mkdir(parents=True)
        for stamp in range(4):
            picture = np.zeros((50, 70, 4), np.uint8)
            picture[5:45, 10:60] = (25 * number, 60 * stamp, 200, 255)
            Image.fromarray(picture).save(stamps / folder / f"{stamp}.png")
    return root


@pytest.mark.parametrize("kind", ["fashion", "stamps"])
def test_sets_have_classes_boxes_and_shares(packages: Path, tmp_path: Path, kind: str) -> None:
    config = OutsideConfig(kind=kind, num_train=30, num_val=20, side=48)  # type: ignore[arg-type]
    make_outside_data(tmp_path / "set", config, packages)
    for split, count in zip(SPLITS, (30, 20), strict=True):
        source = ImageFolder(tmp_path / "set" / split)
        assert (len(source), len(source.classes)) == (count, 10)
        boxes = demo_boxes(source.root, source.paths)
        assert (boxes >= 0.0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1.0 + 1e-6).all()
        assert 0.3 < boxes[:, 2:].max(1).mean() < 0.8  # of the object's longer side
        shares = json.loads((source.root / "shares.json").read_text())
        assert shares.keys() == set(source.paths)
        assert all(0.2 < share <= 1.0 for share in shares.values())
    make_outside_data(tmp_path / "set", config, packages)  # the same: nothing to do
    with pytest.raises(SagaError, match="holds other images"):
        make_outside_data(tmp_path / "set", OutsideConfig(kind=kind, num_train=31, num_val=20), packages)  # type: ignore[arg-type]


def test_a_plate_fills_its_box(packages: Path, tmp_path: Path) -> None:
    config = OutsideConfig(kind="fashion", num_train=10, num_val=10, plate=True)
    make_outside_data(tmp_path / "plates", config, packages)
    assert set(json.loads((tmp_path / "plates/train/shares.json").read_text()).values()) == {1.0}


def test_no_stamp_is_in_both_splits(packages: Path, tmp_path: Path) -> None:
    """The stamps of each class differ by a colour, which is its number."""
    config = OutsideConfig(kind="stamps", num_train=40, num_val=40, side=48, object_side=(0.7, 0.8))
    make_outside_data(tmp_path / "set", config, packages)
    greens: dict[str, set[int]] = {}
    for split in SPLITS:
        source = ImageFolder(tmp_path / "set" / split)
        for path, (x, y, w, h) in zip(source.paths, demo_boxes(source.root, source.paths), strict=True):
            pixels = np.asarray(Image.open(source.root / path).convert("RGB")).astype(int)
            centre = pixels[int(48 * (y + h / 2)), int(48 * (x + w / 2))]
            greens.setdefault(split, set()).add(round(centre[1] / 60))
    assert greens == {"train": {0, 1, 3}, "val": {2}}


def test_a_package_that_cannot_be_had_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SagaError, match=r"the Debian package none-such cannot be had \(apt-get: .*dpkg-deb --extract"):
        unpacked("none-such", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def fake(command: list[str], package: str, _: Path, work: Path) -> None:
        calls.append(command)
        if command[0] == "apt-get":
            (work / f"{package}_1.0_all.deb").touch()
        else:
            (work / "files").mkdir()

    monkeypatch.setattr(debian, "_run", fake)
    assert unpacked("thing", tmp_path) == unpacked("thing", tmp_path) == tmp_path.resolve() / "thing"
    assert [command[0] for command in calls] == ["apt-get", "dpkg-deb"]


def test_the_study_runs_and_its_tables_are_made(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "packages").symlink_to(packages)
    out = tmp_path / "claims.json"
    command = ["--tiny", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    monkeypatch.setattr(claims, "MECHANISM", ("shuffled", "whole"))
    claims.main([*command, "--stages", "screening"])
    claims.main([*command, "--seeds", "1", "--methods", "simclr", "--data", "stamps"])
    rows = json.loads(out.read_text())["rows"]
    assert {row["arm"] for row in rows if row["stage"] == "screening"} == {
        "finetune",
        "saga+",
        "true",
        "shuffled",
        "whole",
    }
    assert {"probe", "knn_both", "knn_att"} <= rows[0].keys()
    assert all(0.0 <= row["probe"] <= 1.0 for row in rows)
    before = out.read_text()
    claims.main([*command, "--stages", "screening"])
    assert json.loads(out.read_text())["rows"] == json.loads(before)["rows"]
    for section in (pages.summary, pages.accuracies, pages.boxes, pages.mechanism):
        assert len(section(StudyRows(rows)).splitlines()) >= 3
    assert f"{len(rows)} runs, " in pages.conditions({**json.loads(before), "rows": rows})


def test_runs_have_names_of_their_own() -> None:
    names = [run.name for run in stages()]
    assert len(names) == len(set(names))


def test_the_imagenet_classifier_is_timms_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's names in its order, and weights that only the right place gives the same logits."""
    torch.manual_seed(0)
    network = timm.create_model(imagenet_classifier.NETWORK, pretrained=False).eval()
    weights = {f"_layer.{number}": value for number, value in enumerate(network.state_dict().values())}
    torch.save(weights, tmp_path / "lite0.pth")
    monkeypatch.setattr(imagenet_classifier, "_weights_file", lambda _: tmp_path / "lite0.pth")
    model = load_model(imagenet_classifier.imagenet_classifier(tmp_path / "imagenet.pt")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model.projector(model.encoder(images))
        torch.testing.assert_close(logits, network(images), rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    monkeypatch.setattr(imagenet_classifier, "PACKAGE", "no-such-package-at-all")
    with pytest.raises(SagaError, match="the Python package no-such-package-at-all cannot be had"):
        imagenet_classifier.imagenet_classifier(tmp_path / "other.pt")
