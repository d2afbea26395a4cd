"""The study runs, at a size that measures nothing, and its tables are made of its rows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.pages import study as tables
from benchmarks.pages.markdown import points
from benchmarks.pages.results import RESULTS
from benchmarks.pages.study_findings import predictions
from benchmarks.pages.study_rows import StudyRows
from benchmarks.study import __main__ as study
from benchmarks.study import boxes, plots
from benchmarks.study.arms import ARMS, FINALS, RETIRED_SCORES, STAGES, TINY, Run, stages
from benchmarks.study.classifier import top1, train_classifier
from benchmarks.study.runs import Study
from saga_fast.checkpoint import load_model
from saga_fast.demo.data import demo_boxes
from saga_fast.loaders import BoxTable, LoaderOptions, WholePlan, open_source
from saga_fast.methods.supervised import Supervised
from saga_fast.runtime.files import sha256

RETIRED = [name for name, arm in ARMS.items() if arm.retired]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The JSON and the runs of a tiny study: each arm, method, kind of data and stage once."""
    folder = tmp_path_factory.mktemp("study")
    out, runs = folder / "study.json", folder / "runs"
    call(out, runs)
    call(out, runs, "--stages", "screening", "--seeds", "0")
    boxes.main(["--out", str(out), "--runs", str(runs), "--tiny", "--networks", "2"])
    return out, runs


def call(out: Path, runs: Path, *more: str) -> None:
    study.main(["--out", str(out), "--runs", str(runs), "--tiny", *(more or ("--seeds", "1"))])


def rows(path: Path) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return read


def test_every_stage_makes_its_rows(made: tuple[Path, Path]) -> None:
    written = rows(made[0])
    expected = {run.name for run in stages() if run.seed < 2 and run.arm not in RETIRED}
    assert {row["name"] for row in written if row["stage"] in STAGES} == expected
    assert len({row["name"] for row in written}) == len(written)
    assert {row["arm"] for row in written if row["stage"] == "screening"} == set(ARMS) - set(RETIRED)
    for row in written:
        assert 0.0 <= row["accuracy"] <= 1.0
        assert row["commit"]
    for row in (row for row in written if row["stage"] in STAGES):
        longer = row["arm"] == "finetune-longer"
        assert row["epochs"] == [TINY.plain_epochs, TINY.saga_epochs + 2 * longer]
        assert len(row["renewals"]) == (not row["arm"].startswith("finetune"))
        assert row["train_seconds"] > 0.0


def test_retired_arms_keep_their_rows_and_are_not_run(made: tuple[Path, Path], tmp_path: Path) -> None:
    committed = rows(RESULTS / "study.json")
    assert len(RETIRED) == 11
    for name in RETIRED:
        commits = {row["commit"][:7] for row in committed if row.get("arm") == name}
        assert commits == {ARMS[name].retired}, name
    for score, commit in RETIRED_SCORES.items():
        makers = [row for row in committed if row["stage"] == "boxes" and row["maker"].startswith(score)]
        assert makers
        assert {row["commit"][:7] for row in makers} == {commit}
    with pytest.raises(SystemExit) as ended:
        call(tmp_path / "new.json", made[1], "--arms", "saga+stream")
    message = str(ended.value)
    assert "arm saga+stream needs an option that the package no longer has" in message
    assert "6be8157" in message
    assert "\n" not in message
    assert not (tmp_path / "new.json").exists()


def test_finished_runs_are_not_repeated(made: tuple[Path, Path]) -> None:
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
    options = LoaderOptions(batch_size=8, shuffle=True, drop_last=True)
    train_classifier(config, tiny.open("middle", "train", whole, options), tmp_path / "last.pt")
    assert top1(tmp_path / "last.pt", tiny.open("middle", "train", whole), channels_last=config.channels_last) > 0.5


def test_box_makers(made: tuple[Path, Path]) -> None:
    """The package's scores are scored as its attention pass makes them; each maker has a row with and without it."""
    scored = {row["maker"]: row for row in rows(made[0]) if row["stage"] == "boxes" and row["method"] == "simclr"}
    assert len(scored) == 4 * len(boxes.MAKERS)
    assert any(row["maker"].startswith("key encoder") for row in rows(made[0]) if row["stage"] == "boxes")
    run = Run(stage="finals", data="middle", method="simclr", seed=0, arm="saga+48.5")
    renewal = next(row for row in rows(made[0]) if row["name"] == run.name)["renewals"][0]
    assert scored[f"background, mirror, {TINY.size} px"]["deltas"]["0.5"]["iou"] == pytest.approx(
        renewal["iou"], abs=1e-3
    )


SECTIONS = (
    *(tables.screening, tables.finals, tables.corlocs, tables.added, tables.sizes, tables.boxes, tables.momentum),
    predictions,
)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_tables_are_made_of_the_rows(section: Callable[[StudyRows], str], made: tuple[Path, Path]) -> None:
    committed = section(StudyRows(rows(RESULTS / "study.json")))
    tiny = section(StudyRows(rows(made[0])))
    assert committed != tiny
    assert committed.splitlines()[0].count("|") >= 3


def test_points() -> None:
    assert points([]) == "-"
    assert points([0.5]) == "50.0 (1 seed)"
    assert points([0.1, 0.3], signed=True) == "+20.0 ± 14.1 (2 seeds)"
    assert points([0.1, 0.2, 0.3]) == "20.0 ± 10.0"


def test_gains_are_paired_by_seed() -> None:
    made = [("finetune", 1, 0.5), ("finetune", 2, 0.7), ("saga+", 1, 0.6), ("saga+", 3, 0.9)]
    some = StudyRows([{"arm": arm, "seed": seed, "accuracy": accuracy} for arm, seed, accuracy in made])
    assert some.gain("saga+") == [pytest.approx(0.1)]


def test_plot(made: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plots.gains(StudyRows(rows(made[0])), tmp_path / name)
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
