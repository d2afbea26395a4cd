"""What ``saga-fast eval`` found, in ``RUN/eval/*.json``, as tables and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from saga_fast.evaluate.protocols import PROTOCOLS
from saga_fast.report.runs import Point, Record, Run, number
from saga_fast.report.tables import NONE, Table, figure


def linear_tests(run: Run) -> list[Record]:
    """The last test of each of the run's linear probes, by the checkpoints' epochs, then in the files' order."""
    rows = [row for row in run.evaluations if row["protocol"] == "linear"]
    finished = [row for row in rows if row.get("probe_epoch") == row.get("probe_epochs")]
    return sorted(finished, key=lambda row: int(row["epoch"]))


def linear_curve(run: Run) -> list[Point]:
    """Linear top-1 by the checkpoint's epoch: of augmented probes on whole images, the last one per epoch."""
    rows = [row for row in linear_tests(run) if (row.get("features"), row.get("views")) == ("augmented", "whole")]
    return sorted({int(row["epoch"]): float(row["top1"]) for row in rows}.items())


def table(runs: Sequence[Run]) -> Table:
    """Evaluations of checkpoints that lie in the runs' folders, the runs side by side.

    Of a protocol that was run on several checkpoints the latest is shown; one that is not the run's last says so.
    """
    cells: dict[str, dict[str, str]] = {}
    for run in runs:
        knn = [row for row in run.evaluations if row["protocol"] == "knn"]
        for row in [*sorted(knn, key=lambda row: int(row["epoch"])), *linear_tests(run)]:
            top5 = number(row, "top5")
            value = figure(number(row, "top1"), 1, percent=True)
            value += f" ({figure(top5, 1, percent=True)})" if top5 is not None else ""
            earlier = run.epochs and row["epoch"] != run.epochs[-1]["epoch"]
            cells.setdefault(_label(row), {})[run.name] = value + (f", epoch {row['epoch']}" if earlier else "")
    rows = tuple((label, *(by_run.get(run.name, NONE) for run in runs)) for label, by_run in cells.items())
    return Table(
        caption="Evaluations of the last checkpoints: top-1, and top-5 in brackets (%)",
        head=("Protocol", *(run.name for run in runs)),
        rows=rows,
    )


def pairs_panels(runs: Sequence[Run]) -> list[tuple[int, str, list[Record]]]:
    """What ``saga-fast eval pairs`` found, one panel per checkpoint and layer, by run and epoch.

    Returns:
        (position of the run whose colour it has, its title, its rows: plain and attention crops). A checkpoint belongs
        to the run whose folder it lay in, whichever run's ``eval/`` holds the file; one of another run keeps its name.
    """
    panels: dict[tuple[int, int, str], dict[str, Record]] = {}
    for holder, run in enumerate(runs):
        for row in run.evaluations:
            if row["protocol"] != "pairs":
                continue
            folder = PurePosixPath(str(row.get("name", ""))).parent.name or run.folder.name
            order = [holder, *range(len(runs))]  # of two runs whose folders have the same name, the file's own
            owner = next((i for i in order if runs[i].folder.name == folder), None)
            title = f"{row['name'] if owner is None else runs[owner].name}, epoch {row['epoch']}"
            title += ", backbone" if row.get("layer") == "backbone" else ""
            panel = (holder if owner is None else owner, int(row["epoch"]), title)
            panels.setdefault(panel, {})[str(row["views"])] = row
    return [
        (style, title, list(kinds.values()))
        for (style, _, title), kinds in sorted(panels.items(), key=lambda item: item[0])
    ]


def boxes_table(runs: Sequence[Run]) -> Table:
    """Rows of ``saga-fast eval boxes``: attention boxes beside the true ones and beside the whole image as the box."""

    def pair(row: Record, key: str, other: str, digits: int, *, percent: bool = False) -> str:
        """A figure, and in brackets what to compare it with."""
        figures = (figure(number(row, name), digits, percent=percent) for name in (key, other))
        return "{} ({})".format(*figures)

    rows = tuple(
        (
            run.name,
            str(row.get("name", NONE)),
            NONE if row.get("epoch") is None else str(row["epoch"]),
            pair(row, "iou", "iou_whole", 3),
            pair(row, "corloc", "corloc_whole", 1, percent=True),
            pair(row, "area", "true_area", 3),
            figure(number(row, "drift"), 3),
            figure(number(row, "images")),
        )
        for run in runs
        for row in run.evaluations
        if row["protocol"] == "boxes"
    )
    return Table(
        caption="Boxes beside true boxes. In brackets: the whole image taken as the box; for areas, which are fractions"
        " of the image, the true boxes. Drift is 1 - mean IoU with the table before",
        head=("Run", "Table", "Epoch", "Mean IoU", "CorLoc@0.5 (%)", "Area", "Drift", "Images"),
        rows=rows,
    )


def _label(row: Record) -> str:
    """The protocol in words: what differs between two rows of a run differs here."""
    views = {"att": ", attention crops", "both": ", whole and crop"}.get(str(row.get("views")), "")
    if row["protocol"] == "knn":
        return f"kNN {row['layer']}, k = {row['k']}, T = {row['temperature']:g}{views}"
    cached = ", cached features (estimate)" if row.get("features") == "cached" else ""
    crop = "" if row.get("test_crop") == "centre 0.875" else f", {row.get('test_crop')}"
    changed = "".join(f", {words} {row[key]:g}" for words, key, usual in _usual(row) if row.get(key, usual) != usual)
    return f"Linear probe {row['probe']}, {row['probe_epochs']} epochs, lr {row['lr']:g}{changed}{cached}{crop}{views}"


def _usual(row: Record) -> list[tuple[str, str, float]]:
    """(words, key, the protocol's value) of what a label names only where it was changed."""
    preset = PROTOCOLS.get(str(row["probe"]))
    changes: list[tuple[str, str, float]] = [("seed", "seed", 0)]
    if preset is not None:
        changes += [("batch", "batch_size", preset.batch_size), ("weight decay", "weight_decay", preset.weight_decay)]
    return changes
