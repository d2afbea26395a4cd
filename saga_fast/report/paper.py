"""The paper's Tables 1 and 2, with the published rows and one row per method of the report's runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_fast.report.accuracies import Measure, after_plain, knn, linear, summarise
from saga_fast.report.groups import FINE_TUNING, PLAIN, SAGA, SUPERVISED, Group, group_runs
from saga_fast.report.runs import Run
from saga_fast.report.tables import NONE, Table

TABLE_1 = (
    ("InsDis", "56.5", "56.8", "56.9"),
    ("PIRL", "60.2", "60.4", "60.7"),
    ("MoCo", "60.6", "60.9", "61.3"),
    ("CMC", "64.1", "64.3", "64.5"),
    ("MoCo v2", "67.5", "67.7", "68.0"),
)
TABLE_2 = (("SimCLR", "50.3", "51.1", "53.2", "57.1"), ("Inv. Spread", "56.5", "56.7", "58.6", "62.3"))
COLUMNS = (PLAIN, FINE_TUNING, SAGA, SUPERVISED)
OTHER = "other"  # column of the arms that the paper does not have


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One of the paper's tables: its published rows, and the columns' arms."""

    caption: str
    head: tuple[str, ...]
    published: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    measure: Measure


def paper_tables(runs: Sequence[Run]) -> list[Table]:
    """Tables 1 and 2: the published rows, and the rows of ``runs`` with at least one accuracy.

    A method has one row for the arms that the table has, one per further arm, and one per arm whose runs did their
    plain epochs themselves. A cell is the mean ± sample standard deviation (number of seeds) of each of its groups.
    """
    groups = group_runs(runs)
    tables = (
        PaperTable(
            caption="Table 1 of the paper: linear top-1 (%), ImageNet, ResNet-50, 200 epochs, then 60 more",
            head=("Method", "200 epochs", "Fine-tuning", "SAGA"),
            published=TABLE_1,
            columns=COLUMNS[:3],
            measure=linear,
        ),
        PaperTable(
            caption="Table 2 of the paper: kNN top-1 (%), ImageNet-100, 160 epochs, then 80 more",
            head=("Method", "160 epochs", "Fine-tuning", "SAGA", "Supervised attention"),
            published=TABLE_2,
            columns=COLUMNS,
            measure=knn,
        ),
    )
    return [_fill(table, groups) for table in tables]


def _fill(table: PaperTable, groups: Sequence[Group]) -> Table:
    """A table with the published rows and those of ``groups``; further arms have a column only if there are any."""
    cells: dict[str, dict[str, list[str]]] = {}
    for group in sorted(groups, key=lambda group: [each.method for each in groups].index(group.method)):
        row = cells.setdefault(_row_name(group, table.columns), {})
        column = group.arm if group.arm in table.columns else OTHER
        row.setdefault(column, []).extend(summary.text for summary in summarise(group, table.measure))
        if group.from_scratch:
            row.setdefault(PLAIN, []).extend(text.text for text in summarise(group, table.measure, after_plain))
    filled = {name: row for name, row in cells.items() if any(row.values())}
    has_other = any(row.get(OTHER) for row in filled.values())
    columns = [*table.columns, *([OTHER] if has_other else [])]
    published = [(f"{row[0]}, paper", *row[1:], *([NONE] if has_other else [])) for row in table.published]
    ours = [(name, *(" / ".join(row.get(key, [])) or NONE for key in columns)) for name, row in filled.items()]
    head = (*table.head, "Other attention") if has_other else table.head
    return Table(caption=table.caption, head=head, rows=(*published, *ours))


def _row_name(group: Group, columns: Sequence[str]) -> str:
    parts = [group.method, "here"]
    if group.arm not in columns or group.from_scratch:
        parts.append(group.arm.replace(", ", " with ", 1))
    if group.from_scratch:
        parts.append("plain epochs in the same run")
    return ", ".join(parts)
