"""The table or figure of a reproduction, from the files that its steps have written so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from saga_fast.report import write_report
from saga_fast.report.accuracies import spread
from saga_fast.report.groups import NAMES
from saga_fast.report.runs import read_evaluation, read_runs
from saga_fast.report.tables import NONE, Table
from saga_fast.reproduce.figure import draw_curves
from saga_fast.reproduce.plan import Reproduction
from saga_fast.reproduce.targets import ARM_TITLES, Arm
from saga_fast.runtime.files import write_text
from saga_fast.runtime.machine import provenance


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One evaluation: top-1 in percent; an estimate is from a probe on cached features."""

    method: str
    arm: Arm
    seed: int
    epoch: int
    top1: float
    is_estimate: bool = False


def read_accuracies(reproduction: Reproduction) -> list[Accuracy]:
    """The accuracies of the finished steps, sorted by method, arm, seed and epoch; none for Fig. 4.

    Raises:
        SagaError: a file that is no evaluation.
    """
    measure = {"linear": _linear, "knn": _knn}.get(reproduction.target.evaluation)
    if measure is None:
        return []
    return [
        accuracy
        for method in reproduction.methods
        for arm in reproduction.arms
        for seed in range(1 if arm == "plain" and method in reproduction.plain_ckpts else reproduction.seeds)
        for accuracy in measure(reproduction, method, arm, seed)
    ]


def results_table(reproduction: Reproduction, accuracies: Sequence[Accuracy]) -> Table:
    """The paper's rows and those of the accuracies: mean ± sample standard deviation (number of seeds).

    The last column is the gain of SAGA over fine-tuning, paired by seed. An arm's last epoch counts.
    """
    arms = reproduction.arms
    rows = []
    for method in reproduction.methods:
        name = NAMES[method]
        published = next(row[1:] for row in reproduction.target.published if row[0] == name)
        gain = f"{float(published[2]) - float(published[1]):+.1f}"
        rows.append((f"{name}, paper", *published, *[NONE] * (len(arms) - len(published)), gain))
        last = {arm: _last(accuracies, method, arm) for arm in arms}
        gains = [last["saga"][seed] - last["finetune"][seed] for seed in last["saga"].keys() & last["finetune"].keys()]
        cells = [spread(list(last[arm].values())) if last[arm] else NONE for arm in arms]
        rows.append((f"{name}, here", *cells, spread(gains, sign=True) if gains else NONE))
    estimate = "; the rows of this machine are estimates on cached features" * any(a.is_estimate for a in accuracies)
    data = "" if reproduction.data is not None else ", here on the demo's images"
    return Table(
        caption=f"{reproduction.target.title}{data}{estimate}",
        head=("Method", *(ARM_TITLES[arm] for arm in arms), "SAGA over fine-tuning"),
        rows=tuple(rows),
    )


def markdown(table: Table) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [table.caption, "", "| " + " | ".join(table.head) + " |", "|" + " --- |" * len(table.head)]
    return lines + ["| " + " | ".join(row) + " |" for row in table.rows]


def write_runs_report(reproduction: Reproduction) -> Path:
    """Write the report of the runs, ``NAME.html``, and return its path."""
    path = reproduction.out / f"{reproduction.name}.html"
    write_report(_run_folders(reproduction), path, title=reproduction.target.title)
    return path


def write_results(reproduction: Reproduction) -> list[str]:
    """Write the results so far into the folder of the reproduction, and return them as lines of text.

    ``NAME.json`` holds the accuracies, ``NAME.md`` the table, ``NAME.png`` a curve.
    """
    out, name, target = reproduction.out, reproduction.name, reproduction.target
    if target.evaluation == "pairs":
        return [f"histograms: {path}" for path in sorted(out.glob(f"{name}_*.png"))]
    accuracies = read_accuracies(reproduction)
    document = {**provenance(), "target": name, "rows": [asdict(accuracy) for accuracy in accuracies]}
    write_text(out / f"{name}.json", json.dumps(document, indent=1) + "\n")
    if target.is_curve:
        draw_curves(out / f"{name}.png", _curves(reproduction, accuracies), title=target.title)
        return [*_curve_lines(reproduction, accuracies), f"curves: {out / f'{name}.png'}"]
    lines = markdown(results_table(reproduction, accuracies))
    write_text(out / f"{name}.md", "\n".join(lines) + "\n")
    return lines


def _linear(reproduction: Reproduction, method: str, arm: Arm, seed: int) -> Iterator[Accuracy]:
    """The last test of each linear probe of an arm; its file has the epoch in its name."""
    for path in sorted(reproduction.folder(method, seed, arm).glob("eval/linear_*.json")):
        row = read_evaluation(path)[-1]
        yield Accuracy(
            method=method,
            arm=arm,
            seed=seed,
            epoch=int(path.stem.rpartition("_")[2]),
            top1=100 * float(row["top1"]),
            is_estimate=row.get("features") == "cached",
        )


def _knn(reproduction: Reproduction, method: str, arm: Arm, seed: int) -> Iterator[Accuracy]:
    """The last kNN evaluation of an arm; of a given plain checkpoint, the first one of the run that starts from it."""
    is_given = arm == "plain" and method in reproduction.plain_ckpts
    folder = reproduction.folder(method, seed, "finetune" if is_given else arm)
    if (folder / "metrics.jsonl").is_file() and (points := read_runs([folder])[0].top1()):
        epoch, top1 = points[0 if is_given else -1]
        yield Accuracy(method=method, arm=arm, seed=seed, epoch=epoch, top1=100 * top1)


def _last(accuracies: Sequence[Accuracy], method: str, arm: Arm) -> dict[int, float]:
    """Seed -> top-1 of an arm's last epoch; seeds that have not reached it are left out."""
    found = [each for each in accuracies if (each.method, each.arm) == (method, arm)]
    last = max((each.epoch for each in found), default=0)
    return {each.seed: each.top1 for each in found if each.epoch == last}


Curves = Mapping[str, Mapping[str, Mapping[int, list[float]]]]
"""Method -> arm -> epoch -> top-1 of each seed."""


def _curves(reproduction: Reproduction, accuracies: Sequence[Accuracy]) -> Curves:
    """The curves of the arms after the plain phase; each begins with the plain checkpoint."""
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for method in reproduction.methods:
        for arm in reproduction.arms:
            if arm == "plain":
                continue
            points = curves.setdefault(NAMES[method], {}).setdefault(ARM_TITLES[arm], {})
            for each in accuracies:
                if each.method == method and each.arm in ("plain", arm):
                    points.setdefault(each.epoch, []).append(each.top1)
    return curves


def _curve_lines(reproduction: Reproduction, accuracies: Sequence[Accuracy]) -> list[str]:
    return [
        f"{method}, {arm}: " + ", ".join(f"{epoch}: {spread(values)}" for epoch, values in sorted(points.items()))
        for method, arms in _curves(reproduction, accuracies).items()
        for arm, points in arms.items()
    ]


def _run_folders(reproduction: Reproduction) -> list[Path]:
    """The run folders of the arms that have begun."""
    folders = [
        reproduction.folder(method, seed, arm)
        for method in reproduction.methods
        for arm in reproduction.arms
        for seed in range(reproduction.seeds)
    ]
    return [folder for folder in dict.fromkeys(folders) if (folder / "metrics.jsonl").is_file()]
