"""The results table of groups: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from saga_fast.report.accuracies import Summary, knn, linear, summarise
from saga_fast.report.comparison import compare, last_knn
from saga_fast.report.groups import group_runs
from saga_fast.report.runs import Run
from saga_fast.report.tables import NONE, Table


def group_table(runs: Sequence[Run]) -> Table | None:
    """One row per group of ``runs``; None if no group has more than one run."""
    groups = group_runs(runs)
    if len(groups) == len(runs):
        return None
    gains = {id(comparison.group): comparison.cell for comparison in compare(groups)}
    rows = []
    for group in groups:
        last = last_knn(group)
        rows.append(
            (
                group.name,
                _cell(summarise(group, knn)),
                gains.get(id(group)) or NONE,
                _cell(summarise(group, linear)),
                str(last.epoch) if last else NONE,
                group.run_names,
            )
        )
    return Table(
        caption="Groups of runs that differ in their seed only: mean ± sample standard deviation (number of seeds)",
        head=("Group", "kNN (%)", "Gain over fine-tuning (points)", "Linear (%)", "Epoch", "Runs"),
        rows=tuple(rows),
    )


def _cell(summaries: Sequence[Summary]) -> str:
    return " / ".join(summary.text for summary in summaries) or NONE
