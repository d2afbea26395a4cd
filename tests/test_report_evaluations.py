"""Results of ``saga-fast eval`` in the report."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import Page, epoch, make_run, make_three, render

from saga_fast.errors import SagaError
from saga_fast.report.runs import read_runs
from saga_fast.report.tables import NONE


def evaluated(run: Path, name: str, *rows: dict[str, Any]) -> None:
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / f"{name}.json").write_text(json.dumps({"rows": rows}))


def linear(epoch: int, top1: float, **changes: object) -> dict[str, Any]:
    row = {"protocol": "linear", "probe": "moco", "features": "augmented", "views": "whole", "lr": 30.0}
    rest = {"probe_epochs": 100, "probe_epoch": 100, "test_crop": "centre 0.875", "epoch": epoch}
    return {**row, **rest, "top1": top1, "top5": 0.9, **changes}


def test_evaluations_are_shown(tmp_path: Path) -> None:
    """In the evaluations table, in the paper's tables and as a curve; unfinished probes are not shown."""
    plain, tuned, guided = make_three(tmp_path)
    evaluated(plain, "linear", linear(2, 0.511), linear(2, 0.3, probe_epoch=50))
    evaluated(tuned, "linear", linear(3, 0.522, features="cached"))
    evaluated(guided, "linear-3", linear(3, 0.53))
    evaluated(guided, "linear-4", linear(4, 0.544))
    pair = {"protocol": "pairs", "name": "saga/last", "epoch": 4, "edges": [-1.0, 0.0, 1.0], "std": 0.1}
    evaluated(guided, "pairs", *({**pair, "views": v, "mean": 0.5, "counts": [1, 3]} for v in ("plain", "attention")))
    box = {"protocol": "boxes", "epoch": 2, "iou": 0.41, "iou_whole": 0.309, "corloc": 0.2, "corloc_whole": 0.1}
    box |= {"name": "epoch_0002", "area": 0.5, "true_area": 0.3, "drift": None, "images": 2000}
    evaluated(guided, "boxes", box, {**box, "name": "mine", "epoch": None, "drift": 0.25})
    page = Page(html := render([plain, tuned, guided], tmp_path / "report.html"))
    text = " ".join(page.text.split()).replace(NONE, "-")
    assert "Linear probe moco, 100 epochs, lr 30 51.1 (90.0) - 54.4 (90.0)" in text
    assert "Linear probe moco, 100 epochs, lr 30, cached features (estimate) - 52.2 (90.0) -" in text
    assert "MoCo v2, paper 67.5 67.7 68.0" in text
    assert "SimCLR, here 51.1 (1) ≈ 52.2 (1) - -" in text
    assert "SimCLR, here, SAGA with mixed, activation - - - 54.4 (1)" in text
    assert "saga epoch_0002 2 0.410 (0.309) 20.0 (10.0) 0.500 (0.300) - 2,000" in text
    assert "saga mine - 0.410 (0.309) 20.0 (10.0) 0.500 (0.300) 0.250 2,000" in text
    assert "saga 53.0 % at epoch 3, 54.4 % at epoch 4" in html
    assert "plain crops: mean 0.500, deviation 0.100; attention crops: mean 0.500" in html


def test_the_latest_checkpoint_counts(tmp_path: Path) -> None:
    """The checkpoints' epochs decide, not the files' names: linear_0003.json is older than linear.json here."""
    plain, tuned, guided = make_three(tmp_path)
    evaluated(guided, "linear", linear(4, 0.544))
    evaluated(guided, "linear_0003", linear(3, 0.53))
    evaluated(tuned, "linear", linear(2, 0.511), linear(2, 0.52, seed=1, batch_size=64, weight_decay=0.1))
    text = " ".join(Page(render([plain, tuned, guided], tmp_path / "report.html")).text.split()).replace(NONE, "-")
    assert "Linear probe moco, 100 epochs, lr 30 - 51.1 (90.0), epoch 2 54.4 (90.0)" in text
    assert "lr 30, seed 1, batch 64, weight decay 0.1 - 52.0 (90.0), epoch 2 -" in text
    assert "SimCLR, here, SAGA with mixed, activation - - - 54.4 (1)" in text


def test_pairs_belong_to_the_run_of_their_checkpoint(tmp_path: Path) -> None:
    """A file may contain rows of several runs' checkpoints, and a run may have files of two layers."""
    runs = make_three(tmp_path)
    row = {"protocol": "pairs", "edges": [-1.0, 0.0, 1.0], "std": 0.1, "mean": 0.5, "counts": [1, 3], "epoch": 4}
    rows = [
        {**row, "name": name, "views": views, "layer": layer}
        for name, layer in (("finetune/last", "projector"), ("saga/last", "projector"), ("other/last", "projector"))
        for views in ("plain", "attention")
    ]
    evaluated(runs[2], "pairs", *rows)
    evaluated(runs[2], "pairs-backbone", *({**saga_row, "layer": "backbone"} for saga_row in rows[2:4]))
    html = render(runs, tmp_path / "report.html")
    titles = ["finetune, epoch 4", "other/last, epoch 4", "saga, epoch 4", "saga, epoch 4, backbone"]
    assert re.findall(r"<figcaption>([^<]*epoch 4[^<]*)</figcaption>", html) == titles
    assert "attention crops, finetune" in html


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ('{"rows": [{}]}', "contains no rows of"), ("[]", "no rows")]
)
def test_unreadable_evaluations_are_named(tmp_path: Path, text: str, message: str) -> None:
    run = make_run(tmp_path / "run", [epoch(1)])
    (run / "eval").mkdir()
    (run / "eval" / "mine.json").write_text(text)
    with pytest.raises(SagaError, match=rf"mine\.json.*{message}"):
        read_runs([run])
