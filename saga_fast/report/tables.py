"""The report's tables as text. Runs are columns, which fit side by side on a phone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from saga_fast.report.runs import Record, Run, number, public_config

NONE = "\u2013"  # en dash


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text; the first cell of each row is its header."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def figure(value: float | None, digits: int = 0, *, percent: bool = False) -> str:
    """A number as text: a dash for None, "not finite" for NaN and infinities."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.{digits}f}" if percent else f"{value:,.{digits}f}"


def results(runs: Sequence[Run]) -> Table:
    """Accuracy, loss, throughput and time, one column per run."""
    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("Method", lambda run: _setting(run, "method.name")),
        ("Views", lambda run: _setting(run, "attention.views")),
        ("Score", lambda run: _setting(run, "attention.score")),
        ("Epochs", _epochs),
        *((f"kNN {layer}, k = {k} (%)", _top1(layer, k)) for layer in ("backbone", "projector") for k in (20, 200)),
        ("Last loss", lambda run: figure(number(run.epochs[-1], "loss") if run.epochs else None, 3)),
        ("Images/s", lambda run: figure(_time_average(run.epochs, "images_per_second"))),
        ("Waiting for data (%)", lambda run: figure(_time_average(run.epochs, "data_wait"), 1, percent=True)),
        ("Total seconds", lambda run: figure(_total_seconds(run))),
    ]
    return _side_by_side("Results: kNN top-1 at the first and last evaluation", runs, rows)


def settings(runs: Sequence[Run]) -> Table:
    """The main config keys, one column per run."""
    keys = {
        "Encoder": "encoder.name",
        "Training images": "data.train",
        "Validation images": "data.val",
        "Plain epochs": "plain.epochs",
        "SAGA epochs": "saga.epochs",
        "Renewal every (epochs)": "attention.period",
        "Threshold delta": "attention.delta",
        "Average with the mirror image": "attention.mirror",
        "Batch size": "batch_size",
        "Seed": "seed",
    }

    def cell(key: str) -> Callable[[Run], str]:
        return lambda run: _setting(run, key)

    return _side_by_side("Settings", runs, [(label, cell(key)) for label, key in keys.items()])


def renewals(runs: Sequence[Run]) -> Table:
    """One row per renewal of the attention boxes."""
    columns = (("iou", 3, False), ("corloc", 1, True), ("found_fraction", 1, True), ("box_area", 3, False))
    head = ("Run", "Epoch", "Mean IoU", "CorLoc@0.5 (%)", "Found (%)", "Mean box area", "Images/s", "Seconds")
    rows = tuple(
        (
            run.name,
            str(record["epoch"]),
            *(figure(number(record, key), digits, percent=percent) for key, digits, percent in columns),
            figure(number(record, "images_per_second")),
            figure(number(record, "seconds"), 1),
        )
        for run in runs
        for record in run.renewals
    )
    return Table(caption="Attention boxes at each renewal", head=head, rows=rows)


def _side_by_side(caption: str, runs: Sequence[Run], rows: Sequence[tuple[str, Callable[[Run], str]]]) -> Table:
    cells = tuple((label, *(cell(run) for run in runs)) for label, cell in rows)
    return Table(caption=caption, head=("Run", *(run.name for run in runs)), rows=cells)


def _setting(run: Run, key: str) -> str:
    value: Any = public_config(run.setting(key))
    return NONE if value is None else str(value)


def _epochs(run: Run) -> str:
    if not run.epochs:
        return "0"
    done = run.epochs[-1]["epoch"]
    planned = [value for key in ("plain.epochs", "saga.epochs") if isinstance(value := run.setting(key), int)]
    return f"{done} of {sum(planned)}" if sum(planned) > done else str(done)


def _top1(layer: str, k: int) -> Callable[[Run], str]:
    def cell(run: Run) -> str:
        curve = run.top1(layer, k)
        if not curve:
            return NONE
        # dict.fromkeys drops the second figure of a run that was evaluated once.
        ends = dict.fromkeys((curve[0], curve[-1]))
        return " → ".join(figure(value, 1, percent=True) for _, value in ends)

    return cell


def _time_average(records: Sequence[Record], key: str) -> float | None:
    """Mean of the records' values, weighted by their seconds: for images/s, all images over all seconds."""
    pairs = [(number(record, key), number(record, "seconds")) for record in records]
    weighted = [(value, seconds) for value, seconds in pairs if value is not None and seconds]
    total = sum(seconds for _, seconds in weighted)
    return sum(value * seconds for value, seconds in weighted) / total if total else None


def _total_seconds(run: Run) -> float | None:
    seconds = [value for record in (*run.epochs, *run.renewals) if (value := number(record, "seconds")) is not None]
    return sum(seconds) if seconds else None
