"""The paper's Tables 1 and 2, with the published rows and one row per method of the report's runs."""

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
    """The column of a run in the paper's tables, from its config: one of ROLES."""
    if run.is_saga:
        return "supervised" if run.setting("attention.provider") == "supervised" else "saga"
    return "finetune" if run.setting("saga.epochs") else "plain"


def paper_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables 1 and 2: the published rows, and one row per method of ``runs`` with at least one accuracy."""
    return [
        Table(
            caption="Table 1 of the paper: linear top-1 (%), ImageNet, ResNet-50, 200 epochs, then 60 more",
            head=("Method", "200 epochs", "Fine-tuning", "SAGA"),
            rows=(*_published_rows(TABLE_1), *_run_rows(runs, _linear, ROLES[:3])),
        ),
        Table(
            caption="Table 2 of the paper: kNN top-1 (%), ImageNet-100, 160 epochs, then 80 more",
            head=("Method", "160 epochs", "Fine-tuning", "SAGA", "Supervised attention"),
            rows=(*_published_rows(TABLE_2), *_run_rows(runs, _knn, ROLES)),
        ),
    ]


def _published_rows(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(f"{row[0]}, paper", *row[1:]) for row in rows]


def _run_rows(
    runs: Sequence[Run], accuracy: Callable[[Run], str | None], roles: Sequence[str]
) -> list[tuple[str, ...]]:
    rows = []
    for method in dict.fromkeys(str(run.setting("method.name")) for run in runs):
        method_runs = [run for run in runs if str(run.setting("method.name")) == method]
        cells = [[text for run in method_runs if role(run) == column and (text := accuracy(run))] for column in roles]
        if any(cells):
            rows.append((f"{NAMES.get(method, method)}, here", *(" / ".join(texts) or NONE for texts in cells)))
    return rows


def _linear(run: Run) -> str | None:
    """Top-1 of the last linear probe; an estimate from cached features has the mark ≈."""
    tests = [row for row in linear_tests(run) if row.get("views") == "whole"]
    preferred = [row for row in tests if row.get("features") == "augmented"] or tests
    if not preferred:
        return None
    mark = "" if preferred[-1].get("features") == "augmented" else "≈\u2009"
    return mark + figure(float(preferred[-1]["top1"]), 1, percent=True)


def _knn(run: Run) -> str | None:
    curve = run.top1()
    return figure(curve[-1][1], 1, percent=True) if curve else None
