"""The report: training runs side by side in one self-contained HTML file."""

import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from saga_fast.report import evaluations, plots, tables
from saga_fast.report.gallery import make_gallery
from saga_fast.report.group_table import group_table
from saga_fast.report.histograms import lowest_edge
from saga_fast.report.page import environment
from saga_fast.report.paper import paper_tables
from saga_fast.report.runs import Point, Run, points, public_config, read_runs
from saga_fast.report.verdict import judge
from saga_fast.runtime.files import write_text
from saga_fast.runtime.machine import commit, hardware
from saga_fast.version import __version__

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], out: Path, *, title: str = "saga-fast", intro: str = "") -> None:
    """Write one self-contained HTML page that compares training runs.

    Args:
        runs: run folders, shown in this order under their folders' names. Their configs tell which are seeds of one
            group, and which one SAGA is compared with: fine-tuning of the same method.
        out: the HTML file; its folder is created, and the file is written atomically.
        title: the page's heading.
        intro: a paragraph below the heading, plain text.

    Raises:
        SagaError: no runs, a folder without ``metrics.jsonl``, or a file of a run that cannot be read.
    """
    template = environment().get_template("report.html.j2")
    write_text(out, template.render(title=title, intro=intro, **_template_variables(read_runs(runs))))


def _template_variables(runs: Sequence[Run]) -> dict[str, Any]:
    galleries = [gallery for run in runs if (gallery := make_gallery(run))]
    return {
        "verdict": judge(runs),
        "results": tables.results(runs),
        "groups": group_table(runs),
        "settings": tables.settings(runs),
        "evaluations": evaluations.table(runs),
        "paper": paper_tables(runs),
        "curves": _curves(runs),
        "speed": _speed(runs),
        "pairs": _pairs(runs),
        "pairs_legend": _pairs_legend(runs),
        "legend": _legend(runs, runs),
        "renewals": tables.renewals(runs),
        "attention": _attention_plots(runs),
        "boxes": evaluations.boxes_table(runs),
        "attention_legend": _legend(runs, [run for run in runs if run.renewals]),
        "galleries": galleries,
        "versions": _versions(),
        "hardware": _hardware(),
        "commands": _commands(runs),
        "configs": [
            (run.name, yaml.safe_dump(public_config(run.config), sort_keys=False, allow_unicode=True)) for run in runs
        ],
    }


def _series(runs: Sequence[Run], curves: Sequence[Sequence[Point]]) -> list[plots.Series]:
    """One line per run; ``curves`` has the points of each run."""
    return [plots.Series(name=run.name, style=i, points=curves[i]) for i, run in enumerate(runs)]


def _legend(runs: Sequence[Run], shown: Sequence[Run]) -> list[tuple[str, str, str]]:
    """(name, CSS colour, dash pattern) of each run in ``shown``."""
    return [
        (run.name, plots.colour(i), " ".join(map(str, plots.dashes(i)))) for i, run in enumerate(runs) if run in shown
    ]


def _curves(runs: Sequence[Run]) -> list[plots.Plot]:
    knn = _series(runs, [run.top1() for run in runs])
    projector = _series(runs, [run.top1("projector") for run in runs])
    online = _series(runs, [points(run.online, "top1") for run in runs])
    ranks = _series(runs, [points(run.rankme, "backbone") for run in runs])
    linear = _series(runs, [evaluations.linear_curve(run) for run in runs])
    loss = _series(runs, [points(run.epochs, "loss") for run in runs])
    similarity = _series(runs, [points(run.epochs, "positive_similarity") for run in runs])
    return _drop_empty(
        plots.line_plot("kNN top-1, backbone, k = 20 (%)", knn, key="knn", unit="percent", markers=True),
        plots.line_plot("kNN top-1, projector, k = 20 (%)", projector, key="projector", unit="percent", markers=True),
        plots.line_plot("Online linear probe, top-1 (%)", online, key="online", unit="percent", markers=True),
        plots.line_plot("Linear top-1 (%)", linear, key="linear", unit="percent", markers=True),
        plots.line_plot("RankMe, backbone", ranks, key="rankme", markers=True),
        plots.line_plot("Loss", loss, key="loss"),
        plots.line_plot("Mean similarity of positive pairs", similarity, key="similarity"),
    )


def _speed(runs: Sequence[Run]) -> list[plots.Plot]:
    rates = _series(runs, [points(run.epochs, "images_per_second") for run in runs])
    waits = _series(runs, [points(run.epochs, "data_wait") for run in runs])
    return _drop_empty(
        plots.line_plot("Training, images per second", rates, key="rate"),
        plots.line_plot("Waiting for data (% of the time)", waits, key="wait", unit="percent"),
    )


def _drop_empty(*candidates: plots.Plot | None) -> list[plots.Plot]:
    return [plot for plot in candidates if plot]


def _pairs(runs: Sequence[Run]) -> list[plots.Plot]:
    """One panel per checkpoint and layer of ``saga-fast eval pairs``, all on the same horizontal axis."""
    panels = evaluations.pairs_panels(runs)
    limits = (lowest_edge([row for panel in panels for row in panel.rows]), 1.0)
    histograms: list[plots.Plot] = []
    for number, panel in enumerate(panels):
        series = [(None if row["views"] == "plain" else panel.style, row) for row in panel.rows]
        histograms.append(plots.histogram_plot(panel.title, series, key=f"pairs-{number}", limits=limits))
    return histograms


def _pairs_legend(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    styles = sorted({panel.style for panel in evaluations.pairs_panels(runs)})
    attention = [(f"attention crops, {runs[i].name}", plots.colour(i), "") for i in styles]
    return [("plain crops", "var(--ink)", "4 2"), *attention] if styles else []


def _attention_plots(runs: Sequence[Run]) -> list[plots.Plot]:
    figures: list[tuple[str, str, plots.Unit]] = [
        ("iou", "Mean IoU with the true boxes", "fraction"),
        ("corloc", "CorLoc@0.5 (%)", "percent"),
        ("found_fraction", "Images with a box found (%)", "percent"),
        ("box_area", "Mean box area (fraction)", "fraction"),
    ]
    curves = [
        plots.line_plot(
            title, _series(runs, [points(run.renewals, key) for run in runs]), key=key, unit=unit, markers=True
        )
        for key, title, unit in figures
    ]
    return _drop_empty(*curves)


def _versions() -> list[tuple[str, str]]:
    versions = [("saga-fast", f"{__version__} ({commit()[:12]})"), ("Python", platform.python_version())]
    for package in ("torch", "torchvision", "numpy", "numba"):
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            versions.append((package, "not installed"))
    return versions


def _hardware() -> str:
    """CPU, memory and GPU of the machine that writes the page."""
    machine = hardware()
    gpu = f", {machine['gpu']}" if "gpu" in machine else ", no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB{gpu}"


def _commands(runs: Sequence[Run]) -> list[str]:
    """Shell commands that repeat the runs and the report.

    START.pt is a placeholder for the checkpoint that a run started from: run folders do not record its path.
    """
    commands = []
    for run in runs:
        start = ["--ckpt", "START.pt"] if _started_from_checkpoint(run) else []
        commands.append(["saga-fast", "train", "--config", f"{run.name}/config.yaml", *start])
    commands.append(["saga-fast", "report", *(run.name for run in runs)])
    return [shlex.join(command) for command in commands]


def _started_from_checkpoint(run: Run) -> bool:
    return bool(run.epochs) and int(run.epochs[0]["epoch"]) > 1
