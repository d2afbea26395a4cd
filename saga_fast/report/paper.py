"""The paper's tables with its own numbers, and a row for these runs in the same form (SAGA, Tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saga_fast.report.evaluations import linear_tests
from saga_fast.report.runs import Run
from saga_fast.report.tables import NONE, Table, figure

TABLE_1 = (
    ("InsDis", "56.5", "56.8", "56.9"),
    ("PIRL", "60.2", "60.4", "60.7"),
    ("MoCo", "60.6", "60.9", "61.3"),
    ("CMC", "64.1", "64.3", "64.5"),
    ("MoCo v2", "67.5", "67.7", "68.0"),
)
TABLE_2 = (("SimCLR", "50.3", "51.1", "53.2", "57.1"), ("Inv. Spread", "56.5", "56.7", "58.6", "62.3"))
ROLES = ("plain", "finetune", "saga", "supervised")
NAMES = {
    "simclr": "SimCLR",
    "moco": "MoCo",
    "mocov2": "MoCo v2",
    "insdis": "InsDis",
    "pirl": "PIRL",
    "cmc": "CMC",
    "invspread": "Inv. Spread",
}


def role(run: Run) -> str:
    """The column of the paper's tables that a run belongs to, by its config."""
    if run.is_saga:
        return "supervised" if run.setting("attention.provider") == "supervised" else "saga"
    return "finetune" if run.setting("saga.epochs") else "plain"


def paper_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables 1 and 2: the paper's rows, and one row per method of these runs that has a figure to show."""
    return [
        Table(
            caption="Table 1 of the paper: linear top-1 (%), ImageNet, ResNet-50, 200 epochs and 60 more",
            head=("Method", "200 epochs", "Fine-tuning", "SAGA"),
            rows=(*_paper(TABLE_1), *_own(runs, _linear, ROLES[:3])),
        ),
        Table(
            caption="Table 2 of the paper: kNN top-1 (%), ImageNet-100, 160 epochs and 80 more",
            head=("Method", "160 epochs", "Fine-tuning", "SAGA", "Supervised attention"),
            rows=(*_paper(TABLE_2), *_own(runs, _knn, ROLES)),
        ),
    ]


def _paper(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(f"{row[0]}, paper", *row[1:]) for row in rows]


def _own(runs: Sequence[Run], value: Callable[[Run], str | None], roles: Sequence[str]) -> list[tuple[str, ...]]:
    rows = []
    for method in dict.fromkeys(str(run.setting("method.name")) for run in runs):
        same = [run for run in runs if str(run.setting("method.name")) == method]
        cells = [[text for run in same if role(run) == column and (text := value(run))] for column in roles]
        if any(cells):
            rows.append((f"{NAMES.get(method, method)}, here", *(" / ".join(texts) or NONE for texts in cells)))
    return rows


def _linear(run: Run) -> str | None:
    """The last linear probe's top-1; one on cached features is marked as the estimate that it is."""
    tests = [row for row in linear_tests(run) if row.get("views") == "whole"]
    best = [row for row in tests if row.get("features") == "augmented"] or tests
    if not best:
        return None
    mark = "" if best[-1].get("features") == "augmented" else "≈\u2009"
    return mark + figure(float(best[-1]["top1"]), 1, percent=True)


def _knn(run: Run) -> str | None:
    curve = run.top1()
    return figure(curve[-1][1], 1, percent=True) if curve else None
