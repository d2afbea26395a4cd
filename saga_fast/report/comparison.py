"""The gain of a group over fine-tuning: kNN top-1 on the backbone, k = 20, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saga_fast.report.accuracies import Summary, knn, seeds, spread, summarise
from saga_fast.report.groups import FINE_TUNING, PLAIN, SAGA, Group, differing_keys, seed
from saga_fast.report.runs import Run

NOISE_POINTS = 1.0  # smallest difference that counts: the noise of kNN top-1 between seeds, measured on a prototype
# Two-sided 95 % quantiles of Student's t with 1 to 9 degrees of freedom; the last one is used beyond, on the safe side.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Side = Literal["above", "below", "within noise"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A group and the fine-tuning of its method.

    Attributes:
        baseline: None if no run fine-tunes the method.
        gains: points of kNN top-1 above the baseline by seed, for the seeds that both have.
        noise: the mean gain in points below which it is noise.
        without_partner: runs of either group that were evaluated and whose seed the other lacks.
        obstacle: why there is no gain; empty if there is one.
    """

    group: Group
    baseline: Group | None
    gains: dict[str, float]
    noise: float
    without_partner: tuple[Run, ...]
    obstacle: str

    @property
    def is_saga(self) -> bool:
        """Whether the group counts in the verdict: supervised attention and given boxes do not."""
        return self.group.arm.split(",")[0] == SAGA

    @property
    def mean(self) -> float:
        """The mean gain as it is printed, so that the verdict agrees with the page."""
        return round(statistics.fmean(self.gains.values()), 1) + 0.0  # not -0.0

    @property
    def side(self) -> Side:
        """Where the group ends."""
        if abs(self.mean) < self.noise:
            return "within noise"
        return "above" if self.mean > 0 else "below"

    @property
    def text(self) -> str:
        """The gain in words, or why there is none."""
        if self.obstacle:
            return f"not compared: {self.obstacle}"
        values = list(self.gains.values())
        count = seeds(len(values))
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        if self.side == "within noise":
            return (
                f"within noise of {FINE_TUNING} ({self.mean:+.1f}{deviation} points, noise {self.noise:.1f}, {count})"
            )
        return f"{abs(self.mean):.1f}{deviation} points {self.side} {FINE_TUNING} ({count})"

    @property
    def cell(self) -> str:
        """The gain as a table's cell, empty if there is none."""
        return spread(list(self.gains.values()), sign=True) if self.gains else ""


def compare(groups: Sequence[Group]) -> list[Comparison]:
    """The comparisons of all groups that are neither plain nor fine-tuning, in order."""
    return [_comparison(group, _baseline(group, groups)) for group in groups if group.arm not in (PLAIN, FINE_TUNING)]


def last_knn(group: Group) -> Summary | None:
    """The summary of a group's last kNN evaluations."""
    return next(iter(summarise(group, knn)), None)


def _baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The fine-tuning group of the same method whose config differs from the group's in the fewest keys.

    An evaluated one comes before one that is not.
    """
    tuned = [other for other in groups if other.arm == FINE_TUNING and other.method == group.method]

    def distance(other: Group) -> tuple[bool, int]:
        differences = len(differing_keys(group, other)) + (group.from_scratch != other.from_scratch)
        return last_knn(other) is None, differences

    return min(tuned, key=distance, default=None)


def _comparison(group: Group, baseline: Group | None) -> Comparison:
    summary, reference = last_knn(group), last_knn(baseline) if baseline else None
    gains: dict[str, float] = {}
    if summary and reference:
        gains = {
            key: points - reference.percent[key] for key, points in summary.percent.items() if key in reference.percent
        }
    if baseline is None:
        obstacle = f"no {FINE_TUNING} run of {group.method}"
    elif summary is None:
        obstacle = f"no kNN evaluation (backbone, k = 20) of {group.name}"
    elif reference is None:
        obstacle = f"no kNN evaluation (backbone, k = 20) of {baseline.name}"
    else:
        obstacle = "" if gains else f"{group.name} and {baseline.name} have no seed in common"
    return Comparison(
        group=group,
        baseline=baseline,
        gains=gains,
        noise=_noise(summary, reference, gains, group) if summary and reference and gains else NOISE_POINTS,
        without_partner=_without_partner([(group, summary), (baseline, reference)]),
        obstacle=obstacle,
    )


def _without_partner(pairs: Sequence[tuple[Group | None, Summary | None]]) -> tuple[Run, ...]:
    """The runs of two groups that their summaries count and whose seed the other summary lacks."""
    counted = [
        [run for run in group.runs if seed(run) in summary.percent] for group, summary in pairs if group and summary
    ]
    if len(counted) < 2:
        return ()
    shared = set.intersection(*({seed(run) for run in runs} for runs in counted))
    return tuple(run for runs in counted for run in runs if seed(run) not in shared)


def _noise(summary: Summary, reference: Summary, gains: dict[str, float], group: Group) -> float:
    """The mean gain in points that is noise: half of its 95 % interval, and at least NOISE_POINTS.

    One seed: the interval is that of the difference of two binomials, the classified images. Several seeds: that of
    Student's t over the seeds' gains.
    """
    if len(gains) > 1:
        half = T95[min(len(gains) - 1, len(T95)) - 1] * statistics.stdev(gains.values()) / math.sqrt(len(gains))
        return max(NOISE_POINTS, round(half, 1))
    (key,) = gains
    images = next(run for run in group.runs if seed(run) == key).knn[-1].get("images")
    if not isinstance(images, int) or images < 1:
        return NOISE_POINTS
    shares = (summary.percent[key] / 100, reference.percent[key] / 100)
    variance = sum(p * (1.0 - p) / images for p in shares)
    return max(NOISE_POINTS, round(196.0 * math.sqrt(variance), 1))
