"""Accuracies of runs and of groups: the figures of an arm's own epochs, and their mean and deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saga_fast.report.evaluations import linear_tests
from saga_fast.report.groups import PLAIN, Group, arm, is_from_scratch, seed
from saga_fast.report.runs import Run


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One evaluation of a run: top-1 in [0, 1]. Figures of different protocols are never averaged."""

    epoch: int
    top1: float
    protocol: tuple[str, ...] = ()
    is_estimate: bool = False


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The accuracies of a group by one protocol, at the last evaluated epoch of its most advanced seed.

    Attributes:
        epoch: that epoch.
        percent: top-1 in percent by seed, of the runs that were evaluated at that epoch.
    """

    epoch: int
    is_estimate: bool
    percent: dict[str, float]

    @property
    def text(self) -> str:
        """Mean ± sample standard deviation (number of seeds); an estimate has the mark ≈."""
        return ("≈\u2009" if self.is_estimate else "") + spread(list(self.percent.values()))


Measure = Callable[[Run], list[Accuracy]]


def mean_deviation(values: Sequence[float], *, sign: bool = False) -> str:
    """``mean ± sample standard deviation`` with one digit; for one value the value."""
    mean = format(statistics.fmean(values), "+.1f" if sign else ".1f")
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """``mean ± sample standard deviation (n)``; for one value ``value (1)``."""
    return f"{mean_deviation(values, sign=sign)} ({len(values)})"


def seeds(count: int) -> str:
    """A number of seeds in words."""
    return "one seed" if count == 1 else f"{count} seeds"


def knn(run: Run) -> list[Accuracy]:
    """kNN top-1 on the backbone, k = 20, by epoch."""
    return [Accuracy(epoch=epoch, top1=top1) for epoch, top1 in run.top1()]


def linear(run: Run) -> list[Accuracy]:
    """Top-1 of the finished linear probes on whole images, sorted by epoch; probes on cached features are estimates."""
    keys = ("probe", "probe_epochs", "lr", "batch_size", "weight_decay", "features", "test_crop")
    return [
        Accuracy(
            epoch=int(row["epoch"]),
            top1=float(row["top1"]),
            protocol=tuple(str(row.get(key)) for key in keys),
            is_estimate=row.get("features") != "augmented",
        )
        for row in linear_tests(run)
        if row.get("views") == "whole"
    ]


def final(run: Run, measure: Measure) -> Accuracy | None:
    """The last accuracy of an arm's own epochs: the start checkpoint's is that of another arm."""
    start = _first_epoch(run)
    return _latest([accuracy for accuracy in measure(run) if accuracy.epoch >= start])


def after_plain(run: Run, measure: Measure) -> Accuracy | None:
    """The accuracy at the end of the plain phase of a run that did its plain epochs itself."""
    end = _plain_epochs(run)
    return _latest([accuracy for accuracy in measure(run) if accuracy.epoch == end]) if is_from_scratch(run) else None


def summarise(group: Group, measure: Measure, pick: Callable[[Run, Measure], Accuracy | None] = final) -> list[Summary]:
    """One summary per protocol of a group's accuracies."""
    picked = [(run, accuracy) for run in group.runs if (accuracy := pick(run, measure)) is not None]
    summaries = []
    for protocol in dict.fromkeys(accuracy.protocol for _, accuracy in picked):
        figures = [(run, accuracy) for run, accuracy in picked if accuracy.protocol == protocol]
        last = max(accuracy.epoch for _, accuracy in figures)
        summaries.append(
            Summary(
                epoch=last,
                is_estimate=figures[0][1].is_estimate,
                percent={seed(run): 100 * accuracy.top1 for run, accuracy in figures if accuracy.epoch == last},
            )
        )
    return summaries


def _latest(accuracies: Sequence[Accuracy]) -> Accuracy | None:
    """The last accuracy that is no estimate, or else the last estimate."""
    preferred = [accuracy for accuracy in accuracies if not accuracy.is_estimate] or accuracies
    return preferred[-1] if preferred else None


def _first_epoch(run: Run) -> int:
    """The first number of finished epochs at which an accuracy is due to the run's arm."""
    if arm(run) == PLAIN:
        return 1
    plain = _plain_epochs(run)
    if plain is not None:
        return plain + 1
    return int(run.epochs[0]["epoch"]) if run.epochs else 1


def _plain_epochs(run: Run) -> int | None:
    """The plain epochs before an arm's own; from the records for a config without them, None if those have none."""
    planned = run.setting("plain.epochs")
    if isinstance(planned, int):
        return planned
    return max((int(row["epoch"]) for row in run.epochs if row.get("phase") == "plain"), default=None)
