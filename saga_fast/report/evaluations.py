"""What ``saga-fast eval`` found, in ``RUN/eval/*.json``, as tables and curves."""

from __future__ import annotations

from collections.abc import Sequence

from saga_fast.report.runs import Point, Record, Run, number
from saga_fast.report.tables import NONE, Table, figure


def linear_tests(run: Run) -> list[Record]:
    """The last test of each of the run's linear probes, in the files' order."""
    rows = [row for row in run.evaluations if row["protocol"] == "linear"]
    return [row for row in rows if row.get("probe_epoch") == row.get("probe_epochs")]


def linear_curve(run: Run) -> list[Point]:
    """Linear top-1 by the checkpoint's epoch: of augmented probes on whole images, the last one per epoch."""
    rows = [row for row in linear_tests(run) if (row.get("features"), row.get("views")) == ("augmented", "whole")]
    return sorted({int(row["epoch"]): float(row["top1"]) for row in rows}.items())


def table(runs: Sequence[Run]) -> Table:
    """Every evaluation of a checkpoint that lies in a run's folder, the runs side by side."""
    cells: dict[str, dict[str, str]] = {}
    for run in runs:
        shown = [row for row in run.evaluations if row["protocol"] == "knn"] + linear_tests(run)
        for row in shown:
            top5 = number(row, "top5")
            value = figure(number(row, "top1"), 1, percent=True)
            value += f" ({figure(top5, 1, percent=True)})" if top5 is not None else ""
            cells.setdefault(_label(row), {})[run.name] = value
    rows = tuple((label, *(by_run.get(run.name, NONE) for run in runs)) for label, by_run in cells.items())
    return Table(
        caption="Evaluations of the last checkpoints: top-1, and top-5 in brackets (%)",
        head=("Protocol", *(run.name for run in runs)),
        rows=rows,
    )


def boxes_table(runs: Sequence[Run]) -> Table:
    """Rows of ``saga-fast eval boxes``: attention boxes beside the true ones and beside the whole image as the box."""
    head = ("Run", "Epoch", "Mean IoU", "Whole image's", "CorLoc@0.5 (%)", "Area", "True area", "Drift")
    columns = (("iou", 3), ("iou_whole", 3), ("corloc", 1), ("area", 3), ("true_area", 3), ("drift", 3))
    rows = tuple(
        (
            run.name,
            str(row.get("epoch", NONE)),
            *(figure(number(row, key), digits, percent=key == "corloc") for key, digits in columns),
        )
        for run in runs
        for row in run.evaluations
        if row["protocol"] == "boxes"
    )
    return Table(caption="Boxes beside true boxes; drift is 1 - mean IoU with the table before", head=head, rows=rows)


def _label(row: Record) -> str:
    """The protocol in words: what differs between two rows of a run differs here."""
    views = {"att": ", attention crops", "both": ", whole and crop"}.get(str(row.get("views")), "")
    if row["protocol"] == "knn":
        return f"kNN {row['layer']}, k = {row['k']}, T = {row['temperature']:g}{views}"
    cached = ", cached features (estimate)" if row.get("features") == "cached" else ""
    crop = "" if row.get("test_crop") == "centre 0.875" else f", {row.get('test_crop')}"
    return f"Linear probe {row['probe']}, {row['probe_epochs']} epochs, lr {row['lr']:g}{cached}{crop}{views}"
