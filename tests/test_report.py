"""The report page: its content, and that it is self-contained."""

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from report_runs import (
    Page,
    epoch,
    knn,
    make_arm,
    make_run,
    make_three,
    online,
    render,
    renewal,
)

from saga_fast.errors import SagaError
from saga_fast.report import plots, write_report
from saga_fast.report.runs import read_runs, short_path
from saga_fast.report.tables import NONE
from saga_fast.report.verdict import judge

HOSTILE = '<img src=x>&"$q_'  # HTML, an entity, a quote, an open TeX formula


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_three(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def html(folders: list[Path]) -> str:
    return render(folders, folders[0].parent / "report.html", intro="Three runs.")


def test_page_is_self_contained(html: str, folders: list[Path]) -> None:
    page = Page(html)
    links = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "xlink:href", "data") if key in attrs]
    assert links
    assert all(link and link.startswith(("data:", "#")) for link in links)
    assert not page.all("script") + page.all("link")
    assert "@import" not in html
    assert str(folders[0].parent) not in html
    assert str(Path.home()) not in html
    assert len(html) < 3_000_000


def test_pictures_and_plots_have_text_alternatives(html: str) -> None:
    page = Page(html)
    assert len(page.all("img")) == 8
    assert all(attrs["alt"] for attrs in page.all("img"))
    drawn = [attrs for attrs in page.all("svg") if attrs.get("aria-hidden") != "true"]
    assert len(drawn) == 9
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawn)
    assert "saga 50.0 % at epoch 2, 63.0 % at epoch 4" in html
    headings = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_online_figures_have_curves(tmp_path: Path) -> None:
    records = [
        knn(0, 0.3),
        epoch(1),
        *online(1, 0.4, 20.5),
        knn(1, 0.4),
        epoch(2),
        *online(2, 0.456, 31.0),
        knn(2, 0.5),
    ]
    html = render([make_run(tmp_path / "run", records)], tmp_path / "report.html")
    labels = [str(attrs.get("aria-label")) for attrs in Page(html).all("svg")]
    (probe,) = (label for label in labels if label.startswith("Online linear probe, top-1 (%)"))
    assert "run 40.0 % at epoch 1, 45.6 % at epoch 2" in probe
    (rank,) = (label for label in labels if label.startswith("RankMe, backbone"))
    assert "run 20.5 at epoch 1, 31 at epoch 2" in rank


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(attrs["href"])[1:] for attrs in page.all("use")} <= set(ids)
    assert {str(attrs["aria-labelledby"]) for attrs in page.all("section")} <= set(ids)


def test_plots_take_their_colours_from_the_page(html: str) -> None:
    assert "#fe0" not in html
    assert "var(--run-2)" in html
    assert html.count("<style") == 1


def test_commands_name_the_start_checkpoint(html: str) -> None:
    assert "train --config plain/config.yaml\n" in html
    assert "train --config finetune/config.yaml --ckpt START.pt\n" in html
    assert "saga-fast report plain finetune saga\n" in html


def test_same_runs_give_the_same_bytes(html: str, folders: list[Path], tmp_path: Path) -> None:
    assert render(folders, tmp_path / "again.html", intro="Three runs.") == html


def test_tables(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert f"Score {NONE} {NONE} activation" in text
    assert "kNN backbone, k = 20 (%) 30.0 → 50.0 50.0 → 60.0 50.0 → 63.0" in text
    assert "Waiting for data (%) 4.0 4.0 4.0" in text
    assert "Total seconds 6 3 16" in text
    assert "saga 3 0.500 30.0 97.0 0.310 400 5.0" in text
    assert "…/data/train" in text


def test_gallery_draws_true_and_attention_boxes(html: str) -> None:
    page = Page(html)
    assert page.all("img")[0]["alt"] == (
        "cat/0.jpg with true box and attention boxes of saga: epoch 2 (nothing found: whole image), IoU 0.33;"
        " epoch 3 (nothing found: whole image), IoU 1.00"
    )
    assert page.all("img")[1]["alt"] == (
        "cat/1.jpg with true box and attention boxes of saga: epoch 2, IoU 0.33; epoch 3, IoU 1.00"
    )
    drawn = [str(attrs["class"]) for attrs in page.all("rect") if attrs.get("width") == "0.5"]
    assert [drawn.count(style) for style in ("true", "box true", "box att-0", "box att-1 last")] == [0, 8, 8, 8]
    assert "IoU 0.33 → 1.00" in page.text


@pytest.mark.parametrize(
    ("saga", "outcome", "ends"),
    [
        (0.630, "win", "3.0 points above fine-tuning (one seed)"),
        (0.575, "loss", "2.5 points below fine-tuning (one seed)"),
        (0.604, "open", "within noise of fine-tuning (+0.4 points, noise 1.0, one seed)"),
        (0.591, "open", "within noise of fine-tuning (-0.9 points, noise 1.0, one seed)"),
        (0.610, "win", "1.0 points above fine-tuning (one seed)"),
    ],
)
def test_verdict(saga: float, outcome: str, ends: str, tmp_path: Path) -> None:
    tuned = make_arm(tmp_path / "tuned", [knn(0, 0.3), knn(9, 0.6)], "fine-tuning")
    guided = make_arm(tmp_path / "saga", [knn(0, 0.3), knn(9, saga)])
    verdict = judge(read_runs([tuned, guided]))
    headline = f"{'SAGA wins' if outcome == 'win' else 'SAGA does not win'}: SimCLR, SAGA ends {ends}."
    assert (verdict.outcome, verdict.headline) == (outcome, headline)
    start = "SimCLR, fine-tuning (tuned): kNN top-1 30.0 % at epoch 0"
    assert verdict.details[0] == f"{start}, 60.0 % at epoch 9 (+30.0 points)."
    page = render([tuned, guided], tmp_path / "report.html")
    assert headline in Page(page).text
    assert f"--tone:var(--{outcome})" in page
    assert f"--{outcome}: #" in page


def test_verdict_counts_the_images(tmp_path: Path) -> None:
    """600 images at 60 % have a standard error of 2 points: 5.5 points at 95 % for the difference of two runs."""
    tuned = make_arm(tmp_path / "finetune", [knn(9, 0.6) | {"images": 600}], "fine-tuning")
    guided = make_arm(tmp_path / "saga", [knn(9, 0.64) | {"images": 600}])
    verdict = judge(read_runs([tuned, guided]))
    assert verdict.outcome == "open"
    assert "within noise of fine-tuning (+4.0 points, noise 5.5, one seed)" in verdict.headline


def test_verdict_counts_several_saga_groups(tmp_path: Path) -> None:
    tuned = make_arm(tmp_path / "finetune", [knn(9, 0.6)], "fine-tuning")
    tops = {"att": 0.65, "mixed": 0.50, "union": 0.605}
    guided = [make_arm(tmp_path / key, [knn(9, top)], attention={"views": key}) for key, top in tops.items()]
    verdict = judge(read_runs([tuned, *guided]))
    counts = "1 above fine-tuning, 1 below, 1 within noise"
    assert verdict.headline == f"SAGA does not win: 3 SAGA groups, {counts}."
    assert verdict.outcome == "open"
    assert "SimCLR, SAGA, mixed (mixed): kNN top-1 50.0 % at epoch 9; 10.0 points below" in verdict.details[2]


def test_verdict_names_unequal_budgets(folders: list[Path]) -> None:
    caveats = [line for line in judge(read_runs(folders)).details if "budget" in line]
    assert caveats == ["saga was last evaluated at epoch 4, finetune at 3: not the same budget."]


@pytest.mark.parametrize(
    ("arms", "evaluated", "reason"),
    [
        (("plain", "fine-tuning"), True, "none of these runs trained with SAGA"),
        (("plain", "SAGA"), True, "no fine-tuning run of SimCLR"),
        (("fine-tuning", "SAGA"), False, "no kNN evaluation (backbone, k = 20) of SimCLR, SAGA"),
    ],
)
def test_verdict_without_a_comparison(arms: Sequence[str], evaluated: bool, reason: str, tmp_path: Path) -> None:
    records = [knn(9, 0.6)] if evaluated else [epoch(3, phase="saga")]
    verdict = judge(read_runs([make_arm(tmp_path / arm, records, arm) for arm in arms]))
    assert verdict.outcome == "none"
    assert reason in verdict.headline
    assert ("no kNN evaluation" in verdict.details[0]) != evaluated


def test_page_of_runs_with_missing_records(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text("")
    diverged = make_run(tmp_path / "diverged", [epoch(1), {"kind": "epoch", "epoch": 2, "loss": math.nan}])
    page = Page(render([tmp_path / "bare", diverged], tmp_path / "report.html"))
    assert "No run renewed its attention boxes." in page.text
    assert "not finite" in page.text
    assert not page.all("img")
    empty = Page(render([tmp_path / "bare"], tmp_path / "empty.html"))
    assert "No epoch is recorded yet." in empty.text


def test_page_without_true_boxes(tmp_path: Path) -> None:
    runs = make_three(tmp_path)
    (tmp_path / "data" / "train" / "boxes.json").unlink()
    metrics = runs[2] / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(renewal(at, iou=None, corloc=None)) + "\n" for at in (2, 3)))
    page = Page(render(runs, tmp_path / "report.html"))
    assert "true box" not in page.text.replace("true boxes", "")
    assert page.all("img")[1]["alt"] == "cat/1.jpg with attention boxes of saga: epoch 2; epoch 3"
    assert not [attrs for attrs in page.all("svg") if "IoU" in str(attrs.get("aria-label"))]


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    runs = make_three(tmp_path, classes=(HOSTILE, "dog"), saga=HOSTILE)
    page = Page(render(runs, tmp_path / "report.html", title=HOSTILE, intro=HOSTILE))
    assert all(str(attrs["src"]).startswith("data:image/jpeg;base64,") for attrs in page.all("img"))
    assert len(page.all("img")) == 8
    assert f"SimCLR, SAGA, mixed, activation ({HOSTILE}): kNN top-1" in page.text
    assert f"{HOSTILE}/0.jpg" in page.text
    assert str(page.all("img")[0]["alt"]).startswith(f"{HOSTILE}/0.jpg with")


def test_run_without_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SagaError, match=r"empty contains no metrics\.jsonl: name a run folder"):
        write_report([tmp_path / "empty"], tmp_path / "report.html")
    with pytest.raises(SagaError, match="name at least one run folder"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_later_rows_of_a_resumed_run_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [epoch(1), epoch(2, loss=9.0), knn(2, 0.1), epoch(2, loss=1.0), knn(2, 0.2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "ep')  # killed while writing
    (run,) = read_runs([folder])
    assert [record["loss"] for record in run.epochs] == [2.5, 1.0]
    assert run.top1() == [(2, 0.2)]


def test_broken_lines_of_metrics_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run", [epoch(1, loss=1.5)])
    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"kind"\n' + metrics.read_text() + '{"kind": "epoch"}\n')
    (run,) = read_runs([folder])
    assert [record["loss"] for record in run.epochs] == [1.5]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(str(metrics) in line for line in lines)
    assert ["line 1" in lines[0], "line 3" in lines[1]] == [True, True]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [", r"config\.yaml is not readable YAML"),
        ("config.yaml", "- a", r"list instead of a mapping in .*config\.yaml"),
        ("att/epoch_0002.safetensors", "no table", r"not a box table: .*epoch_0002\.safetensors"),
        ("../data/train/boxes.json", "{", r"boxes\.json must map"),
        ("../data/train/boxes.json", '{"a": 3}', r"boxes\.json must map"),
    ],
)
def test_unreadable_file_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    saga = make_three(tmp_path)[2]
    (saga / name).write_text(text)
    with pytest.raises(SagaError, match=message):
        write_report([saga], tmp_path / "report.html")


def test_runs_with_the_same_folder_name(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / study / "saga", [epoch(1)]) for study in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/saga", "b/saga"]


def test_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", [epoch(1)])
    out = tmp_path / "out" / "report.html"
    render([run], out, title="old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report([run], out, title="new")
    assert "<h1>old</h1>" in out.read_text(encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/home/someone/runs/data/train", "…/data/train"),
        ("/data", "…/data"),
        ("C:\\Users\\someone\\data\\train", "…/data/train"),
        ("runs/demo/data/train", "runs/demo/data/train"),
        ("simclr", "simclr"),
    ],
)
def test_short_path(path: str, short: str) -> None:
    assert short_path(path) == short


def test_fraction_axis_ends_at_one() -> None:
    series = [plots.Series(name="saga", style=0, points=[(1, 1.0), (2, 0.999)])]
    plot = plots.line_plot("Found (%)", series, key="found", unit="percent")
    assert plot
    ticks = [float(text) for text in re.findall(r"<text[^>]*>([\d.]+)</text>", plot.svg) if float(text) > 2]
    assert min(ticks) <= 92
    assert max(ticks) == 100
    assert plots.line_plot("Found (%)", [plots.Series(name="plain", style=0, points=[])], key="found") is None
