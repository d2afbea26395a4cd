"""Tables, curves and panels from the results of ``saga-fast eval`` in ``RUN/eval/*.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from saga_fast.evaluate.protocols import PROTOCOLS
from saga_fast.report.runs import Point, Record, Run, number
from saga_fast.report.tables import NONE, Table, figure


@dataclass(frozen=True, kw_only=True)
class PairsPanel:
    """Similarity histograms of one checkpoint and layer.

    Attributes:
        style: position in the report of the run whose colour the panel has.
        title: the panel's heading.
        rows: rows of ``saga-fast eval pairs``, one for plain and one for attention crops.
    """

    style: int
    title: str
    rows: Sequence[Record]


def linear_tests(run: Run) -> list[Record]:
    """The last test of each finished linear probe of a run, sorted by the checkpoint's epoch."""
    rows = [row for row in run.evaluations if row["protocol"] == "linear"]
    finished = [row for row in rows if row.get("probe_epoch") == row.get("probe_epochs")]
    return sorted(finished, key=lambda row: int(row["epoch"]))


def linear_curve(run: Run) -> list[Point]:
    """(epoch of the checkpoint, linear top-1) of the probes with augmentation on whole images.

    If an epoch has several probes, the last one counts.
    """
    rows = [row for row in linear_tests(run) if (row.get("features"), row.get("views")) == ("augmented", "whole")]
    return sorted({int(row["epoch"]): float(row["top1"]) for row in rows}.items())


def table(runs: Sequence[Run]) -> Table:
    """Accuracies of the kNN and linear protocols, one row per protocol, one column per run.

    If a protocol was run on several checkpoints of a run, its latest checkpoint is shown. If that is not the run's last
    epoch, the cell names the epoch.
    """
    cells: dict[str, dict[str, str]] = {}
    for run in runs:
        knn = [row for row in run.evaluations if row["protocol"] == "knn"]
        for row in [*sorted(knn, key=lambda row: int(row["epoch"])), *linear_tests(run)]:
            top5 = number(row, "top5")
            accuracy = figure(number(row, "top1"), 1, percent=True)
            accuracy += f" ({figure(top5, 1, percent=True)})" if top5 is not None else ""
            is_older = run.epochs and row["epoch"] != run.epochs[-1]["epoch"]
            cells.setdefault(_label(row), {})[run.name] = accuracy + (f", epoch {row['epoch']}" if is_older else "")
    rows = tuple((label, *(by_run.get(run.name, NONE) for run in runs)) for label, by_run in cells.items())
    return Table(
        caption="Evaluations of the last checkpoints: top-1, and top-5 in brackets (%)",
        head=("Protocol", *(run.name for run in runs)),
        rows=rows,
    )


def pairs_panels(runs: Sequence[Run]) -> list[PairsPanel]:
    """The panels of ``saga-fast eval pairs``, sorted by run and epoch.

    A checkpoint belongs to the run whose folder contains it, even if another run's ``eval/`` has the results. The
    checkpoint of a run that is not in the report keeps its own name.
    """
    panels: dict[tuple[int, int, str], dict[str, Record]] = {}
    for position, run in enumerate(runs):
        for row in run.evaluations:
            if row["protocol"] != "pairs":
                continue
            owner = _run_of_checkpoint(runs, position, row)
            title = f"{row['name'] if owner is None else runs[owner].name}, epoch {row['epoch']}"
            title += ", backbone" if row.get("layer") == "backbone" else ""
            panel = (position if owner is None else owner, int(row["epoch"]), title)
            panels.setdefault(panel, {})[str(row["views"])] = row
    return [
        PairsPanel(style=style, title=title, rows=tuple(by_views.values()))
        for (style, _, title), by_views in sorted(panels.items(), key=lambda item: item[0])
    ]


def _run_of_checkpoint(runs: Sequence[Run], position: int, row: Record) -> int | None:
    """The position of the run whose folder contains a row's checkpoint, None if there is none.

    ``position`` is that of the run whose ``eval/`` has the row.
    """
    folder = PurePosixPath(str(row.get("name", ""))).parent.name or runs[position].folder.name
    # Folders of two runs may have the same name: the run with the row comes first.
    candidates = [position, *range(len(runs))]
    return next((i for i in candidates if runs[i].folder.name == folder), None)


def boxes_table(runs: Sequence[Run]) -> Table:
    """Quality of attention boxes, one row per row of ``saga-fast eval boxes``."""

    def with_reference(row: Record, key: str, reference: str, digits: int, *, percent: bool = False) -> str:
        """A figure, followed by its reference in brackets."""
        figures = (figure(number(row, name), digits, percent=percent) for name in (key, reference))
        return "{} ({})".format(*figures)

    rows = tuple(
        (
            run.name,
            str(row.get("name", NONE)),
            NONE if row.get("epoch") is None else str(row["epoch"]),
            with_reference(row, "iou", "iou_whole", 3),
            with_reference(row, "corloc", "corloc_whole", 1, percent=True),
            with_reference(row, "area", "true_area", 3),
            figure(number(row, "drift"), 3),
            figure(number(row, "images")),
        )
        for run in runs
        for row in run.evaluations
        if row["protocol"] == "boxes"
    )
    return Table(
        caption="Attention boxes compared with true boxes. In brackets: IoU and CorLoc of the whole image as the box,"
        " and the area of the true boxes. Areas are fractions of the image. Drift is 1 - mean IoU with the previous"
        " table",
        head=("Run", "Table", "Epoch", "Mean IoU", "CorLoc@0.5 (%)", "Area", "Drift", "Images"),
        rows=rows,
    )


def _label(row: Record) -> str:
    """The protocol and its settings as text, different for any two protocols of a run."""
    views = {"att": ", attention crops", "both": ", whole and crop"}.get(str(row.get("views")), "")
    if row["protocol"] == "knn":
        return f"kNN {row['layer']}, k = {row['k']}, T = {row['temperature']:g}{views}"
    cached = ", cached features (estimate)" if row.get("features") == "cached" else ""
    crop = "" if row.get("test_crop") == "centre 0.875" else f", {row.get('test_crop')}"
    changed = "".join(
        f", {name} {row[key]:g}" for name, key, default in _defaults(row) if row.get(key, default) != default
    )
    return f"Linear probe {row['probe']}, {row['probe_epochs']} epochs, lr {row['lr']:g}{changed}{cached}{crop}{views}"


def _defaults(row: Record) -> list[tuple[str, str, float]]:
    """(name in a label, key, default) of the settings that a label omits at their defaults."""
    protocol = PROTOCOLS.get(str(row["probe"]))
    defaults: list[tuple[str, str, float]] = [("seed", "seed", 0)]
    if protocol is not None:
        defaults += [
            ("batch", "batch_size", protocol.batch_size),
            ("weight decay", "weight_decay", protocol.weight_decay),
        ]
    return defaults
