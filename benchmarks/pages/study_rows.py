"""The rows of the study's runs, selected, and their figures by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.study.arms import SEEDS
from saga_fast.profile.figures import Row


def accuracy(row: Row) -> float:
    """Top-1 of kNN on whole images, backbone."""
    return float(row["accuracy"])


def accuracy_before(row: Row) -> float:
    """That of the plain checkpoint that the run starts from."""
    return float(row["limit"])


def last_corloc(row: Row) -> float:
    """CorLoc at the run's last renewal."""
    return float(row["renewals"][-1]["corloc"])


def renewal_share(row: Row) -> float:
    """Seconds of the renewals over those of the epochs."""
    return float(sum(renewal["seconds"] for renewal in row["renewals"]) / row["train_seconds"])


class StudyRows:
    """Some rows of study.json."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def where(
        self, *, stage: str | None = None, data: str | None = None, method: str | None = None, arm: str | None = None
    ) -> StudyRows:
        """The rows with these values."""
        values = {"stage": stage, "data": data, "method": method, "arm": arm}
        given = {key: value for key, value in values.items() if value is not None}
        return StudyRows([row for row in self.rows if all(row.get(key) == value for key, value in given.items())])

    def tested(self) -> StudyRows:
        """The rows of the seeds on which nothing was chosen."""
        return StudyRows([row for row in self.rows if row["seed"] in SEEDS])

    def by_seed(self, arm: str, figure: Callable[[Row], float] = accuracy) -> dict[int, float]:
        """Seed -> a figure of the arm's runs."""
        return {row["seed"]: figure(row) for row in self.where(arm=arm).rows}

    def values(self, arm: str, figure: Callable[[Row], float] = accuracy) -> list[float]:
        """A figure of the arm's runs."""
        return list(self.by_seed(arm, figure).values())

    def gain(self, arm: str, over: str = "finetune") -> list[float]:
        """Accuracy over another arm's from the same checkpoint, seed by seed."""
        accuracies, baseline = self.by_seed(arm), self.by_seed(over)
        return [accuracies[seed] - baseline[seed] for seed in sorted(accuracies.keys() & baseline.keys())]
