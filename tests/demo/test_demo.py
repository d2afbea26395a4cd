"""The demo, end to end on a few dozen images."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_fast import load_model
from saga_fast.checkpoint import read_checkpoint
from saga_fast.cli import main
from saga_fast.demo.run import run_demo
from saga_fast.errors import SagaError
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train import cycle, renewal
from saga_fast.train.epoch import train_epoch

ARMS = ("plain", "finetune", "saga", "saga_plus")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--tiny", "--out", str(out)]) == 0
    return out


def checkpoints(out: Path) -> dict[str, tuple[int, bytes]]:
    """When last.pt was written and what is in it, of every arm that has one."""
    paths = {arm: out / arm / "last.pt" for arm in ARMS}
    return {arm: (path.stat().st_mtime_ns, path.read_bytes()) for arm, path in paths.items() if path.exists()}


def test_folders(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {"data", "report.html", *ARMS}
    assert (demo / "data" / "train" / "boxes.json").is_file()


def test_engine_ffcv(demo: Path, tmp_path: Path) -> None:
    """Raw pixels give the folder engine's views, and so its figures; pictures and true boxes are found too."""
    out = tmp_path / "out"
    assert main(["demo", "--tiny", "--engine", "ffcv", "--out", str(out)]) == 0
    assert {path.name for path in (out / "data").glob("train*")} == {
        "train",
        "train.beton",
        "train.beton.json",
        "train.boxes.json",
    }
    own, other = (
        [{key: row[key] for key in ("kind", "epoch", "iou", "loss", "top1") if key in row} for row in read_metrics(run)]
        for run in (out / "saga", demo / "saga")
    )
    assert own == other
    assert "data:image/jpeg;base64," in (out / "report.html").read_text()


def test_report_compares_the_arms(demo: Path) -> None:
    report = (demo / "report.html").read_text()
    assert all(arm in report for arm in ARMS)
    assert "data:image/jpeg;base64," in report  # the gallery of images with boxes
    assert "http://" not in report.replace("http://www.w3.org/", "")
    assert "https://" not in report.replace("https://www.w3.org/", "")


def test_all_arms_are_trained_and_evaluated(demo: Path) -> None:
    rows = {arm: read_metrics(demo / arm) for arm in ARMS}
    phases = {arm: [row["phase"] for row in rows[arm] if row["kind"] == "epoch"] for arm in ARMS}
    assert phases == {"plain": ["plain"], **dict.fromkeys(ARMS[1:], ["saga"] * 2)}
    for arm, epochs in (("plain", {0, 1}), *((arm, {1, 3}) for arm in ARMS[1:])):
        knn = [row for row in rows[arm] if row["kind"] == "knn"]
        assert {row["epoch"] for row in knn} == epochs
        assert {(row["layer"], row["k"]) for row in knn} == {("backbone", 20), ("projector", 20)}
    renewals = [row for row in rows["saga"] if row["kind"] == "renewal"]
    assert [row["epoch"] for row in renewals] == [1, 2]
    assert all(0.0 < row["iou"] < 1.0 and 0.0 <= row["corloc"] <= 1.0 for row in renewals)
    assert not any(row["kind"] == "renewal" for row in rows["finetune"])


def test_all_arms_start_from_the_plain_checkpoint(demo: Path) -> None:
    first = {
        arm: {(row["layer"], row["top1"]) for row in read_metrics(demo / arm) if (row["kind"], row["epoch"]) == at}
        for arm, at in zip(ARMS, [("knn", 1)] * len(ARMS), strict=True)
    }
    assert first["plain"] == first["finetune"] == first["saga"] == first["saga_plus"]
    ends = [load_model(demo / arm / "last.pt").state_dict() for arm in ARMS]
    assert all(bool((ends[0][name] != ends[arm][name]).any()) for arm in (1, 2, 3) for name in ("projector.0.weight",))
    assert all(
        bool((ends[a]["projector.0.weight"] != ends[b]["projector.0.weight"]).any()) for a, b in ((1, 2), (2, 3))
    )


def test_second_run_reports_again_and_trains_nothing(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoints(demo)
    metrics = {arm: (demo / arm / "metrics.jsonl").read_text() for arm in ARMS}
    (demo / "report.html").unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("works again on what is done")

    for name in ("train_epoch", "knn_accuracy", "save_checkpoint"):
        monkeypatch.setattr(cycle, name, fail)
    monkeypatch.setattr(renewal, "build_box_table", fail)
    assert main(["demo", "--tiny", "--out", str(demo)]) == 0
    assert capsys.readouterr().out == f"report: {demo / 'report.html'}\n"
    assert (demo / "report.html").is_file()
    assert checkpoints(demo) == before
    assert {arm: (demo / arm / "metrics.jsonl").read_text() for arm in ARMS} == metrics


def test_another_demo_in_the_same_folder_is_refused(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = checkpoints(demo)
    assert main(["demo", "--tiny", "--out", str(demo), "--set", "seed=5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(demo / "plain") in line
    assert "seed" in line
    assert main(["demo", "--tiny", "--out", str(demo), "--set", "data.generate.seed=5"]) == 2
    assert checkpoints(demo) == before


def test_demo_goes_on_where_it_was_cut(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    shutil.rmtree(out / "saga")
    (out / "report.html").unlink()
    before = checkpoints(out)
    calls = 0

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return train_epoch(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cycle, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, tiny=True, progress=False)
    assert read_checkpoint(out / "saga" / "last.pt")["epoch"] == 2
    assert not (out / "report.html").exists()
    assert run_demo(out, tiny=True, progress=False) == out / "report.html"
    assert {arm: state for arm, state in checkpoints(out).items() if arm != "saga"} == before
    own, expected = (read_checkpoint(root / "saga" / "last.pt")["model"] for root in (out, demo))
    assert all(torch.equal(tensor, own[name]) for name, tensor in expected.items())


def test_unknown_override_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=r"unknown key plain\.epoch"):
        run_demo(tmp_path / "out", tiny=True, overrides=["plain.epoch=3"])
    assert not (tmp_path / "out").exists()


def test_figures_are_json(demo: Path) -> None:
    for arm in ARMS:
        for line in (demo / arm / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
            assert row["kind"] in ("epoch", "knn", "online", "rankme", "renewal")
