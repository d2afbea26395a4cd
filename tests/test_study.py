"""The study runs, at a size that measures nothing; and what its page says is what its JSON says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.study import __main__ as study
from benchmarks.study import boxes, plots
from benchmarks.study.arms import ARMS, FINALS, STAGES, TINY, Run, stages
from benchmarks.study.classifier import top1, train_classifier
from benchmarks.study.document import PAGES, RESULTS, SECTIONS, Figures, points, rewritten
from benchmarks.study.runs import Study
from saga_fast.checkpoint import load_model
from saga_fast.demo.data import demo_boxes
from saga_fast.loaders import BoxTable, WholePlan, open_source
from saga_fast.methods.supervised import Supervised
from saga_fast.runtime.files import sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The JSON and the runs of a tiny study: every arm, method, kind of data and stage once."""
    folder = tmp_path_factory.mktemp("study")
    out, runs = folder / "study.json", folder / "runs"
    call(out, runs)
    call(out, runs, "--stages", "screening", "--seeds", "0")
    boxes.main(["--out", str(out), "--runs", str(runs), "--tiny", "--networks", "2"])
    return out, runs


def call(out: Path, runs: Path, *more: str) -> None:
    study.main(["--out", str(out), "--runs", str(runs), "--tiny", *(more or ("--seeds", "1"))])


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return found


def test_every_stage_makes_its_rows(made: tuple[Path, Path]) -> None:
    written = rows(made[0])
    wanted = {run.name for run in stages() if run.seed < 2}
    assert {row["name"] for row in written if row["stage"] in STAGES} == wanted
    assert len({row["name"] for row in written}) == len(written)
    assert {row["arm"] for row in written if row["stage"] == "screening"} == set(ARMS)
    for row in written:
        assert 0.0 <= row["accuracy"] <= 1.0
        assert row["commit"]
    for row in (row for row in written if row["stage"] in STAGES):
        longer = row["arm"] == "finetune-longer"
        assert row["epochs"] == [TINY.plain_epochs, TINY.saga_epochs + 2 * longer]
        assert len(row["renewals"]) == (not row["arm"].startswith("finetune"))
        assert row["train_seconds"] > 0.0


def test_what_is_there_is_not_repeated(made: tuple[Path, Path]) -> None:
    before = made[0].read_text()
    call(*made)
    assert made[0].read_text() == before


def test_nothing_begins_without_budget(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(tmp_path / "new.json", made[1], "--budget-minutes", "0")
    assert not (tmp_path / "new.json").exists()
    assert "the budget is spent" in capsys.readouterr().out


def test_arms_start_from_one_checkpoint(made: tuple[Path, Path]) -> None:
    finals = [row for row in rows(made[0]) if row["stage"] == "finals" and row["method"] == "simclr"]
    assert [row["arm"] for row in finals] == list(FINALS)
    assert len({json.dumps(row["knn_plain"]) for row in finals}) == 1


def test_given_tables_are_what_they_are_called(made: tuple[Path, Path]) -> None:
    folder = made[1] / "middle" / "simclr-1"
    source = open_source("folder", made[1] / "middle" / "data" / "train")
    true = BoxTable.open(folder / "true.safetensors").boxes
    np.testing.assert_array_equal(true, demo_boxes(source.root, source.paths))
    shuffled = BoxTable.open(folder / "shuffled.safetensors").boxes
    own = BoxTable.open(folder / "saga+" / "att" / "epoch_0001.safetensors").boxes
    assert not np.array_equal(shuffled, own)
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(own, axis=0))
    used = BoxTable.open(folder / "shuffled" / "att" / "epoch_0001.safetensors").boxes
    np.testing.assert_array_equal(used, shuffled)


def test_the_classifier_gives_boxes(made: tuple[Path, Path]) -> None:
    """One for both of its arms, made from the labels; its boxes are the table that they train with."""
    folder = made[1] / "middle" / "simclr-0"
    ckpt = folder / "classifier" / "last.pt"
    model = load_model(ckpt)
    assert isinstance(model, Supervised)
    assert model.projector.out_features == 12
    plain = load_model(folder / "plain" / "last.pt")
    assert not torch.equal(model.encoder.backbone.conv1.weight, plain.encoder.backbone.conv1.weight)
    for arm in ("supervised", "supervised-mixed"):
        table = BoxTable.open(folder / arm / "att" / "epoch_0001.safetensors")
        assert table.metadata["checkpoint"] == sha256(ckpt)
    shares = {row["arm"]: row["classifier_top1"] for row in rows(made[0]) if "classifier_top1" in row}
    assert shares.keys() == {"supervised", "supervised-mixed"}
    assert len(set(shares.values())) == 1


def test_a_classifier_learns(made: tuple[Path, Path], tmp_path: Path) -> None:
    tiny = Study(made[1], TINY)
    config = tiny.config(Run(stage="screening", data="middle", method="simclr", seed=0, arm="supervised"), "classifier")
    config = replace(config, plain=replace(config.plain, epochs=12, warmup_epochs=0))
    whole = WholePlan(size=config.crop.size)
    loader = tiny.open(config, "train", whole, batch_size=8, shuffle=True, drop_last=True, seed=0)
    train_classifier(config, loader, tmp_path / "last.pt")
    seen = tiny.open(config, "train", whole)
    assert top1(tmp_path / "last.pt", seen, channels_last=config.channels_last) > 0.5


def test_box_makers(made: tuple[Path, Path]) -> None:
    """The package's scores are scored as its attention pass makes them; every maker is there, once and mirrored."""
    scored = {row["maker"]: row for row in rows(made[0]) if row["stage"] == "boxes" and row["method"] == "simclr"}
    assert len(scored) == 4 * len(boxes.MAKERS)
    assert any(row["maker"].startswith("key encoder") for row in rows(made[0]) if row["stage"] == "boxes")
    run = Run(stage="finals", data="middle", method="simclr", seed=0, arm="saga+48.5")
    renewal = next(row for row in rows(made[0]) if row["name"] == run.name)["renewals"][0]
    assert scored[f"background, mirror, {TINY.size} px"]["deltas"]["0.5"]["iou"] == pytest.approx(
        renewal["iou"], abs=1e-3
    )


def test_pages_say_what_the_json_says(made: tuple[Path, Path]) -> None:
    document = json.loads(RESULTS.read_text())
    named = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert rewritten(text, document) == text, f"{page}: python -m benchmarks.study.document"
        named |= {name for name in SECTIONS if f"<!-- study: {name} -->" in text}
    assert named == set(SECTIONS)
    other = json.loads(made[0].read_text())
    study_page = PAGES[0].read_text(encoding="utf-8")
    assert rewritten(study_page, other) != study_page


def test_points() -> None:
    assert points([]) == "-"
    assert points([0.5]) == "50.0 (1 seed)"
    assert points([0.1, 0.3], signed=True) == "+20.0 ± 14.1 (2 seeds)"
    assert points([0.1, 0.2, 0.3]) == "20.0 ± 10.0"


def test_gains_are_paired_by_seed() -> None:
    made = [("finetune", 1, 0.5), ("finetune", 2, 0.7), ("saga+", 1, 0.6), ("saga+", 3, 0.9)]
    figures = Figures([{"arm": arm, "seed": seed, "accuracy": accuracy} for arm, seed, accuracy in made])
    assert figures.gain("saga+") == [pytest.approx(0.1)]


def test_plot(made: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plots.gains(Figures(rows(made[0])), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "Inv. Spread" in text


def test_plain_checkpoint_is_made_once(made: tuple[Path, Path]) -> None:
    tiny = Study(made[1], TINY)
    run = Run(stage="finals", data="middle", method="simclr", seed=1, arm="true")
    path = made[1] / "middle" / "simclr-1" / "plain" / "last.pt"
    before = path.stat().st_mtime_ns
    assert tiny.plain(run) == path
    assert path.stat().st_mtime_ns == before
