"""The verdict as text: kNN top-1 on the backbone, k = 20, at each run's last evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saga_fast.report.runs import Run

BASELINE = "finetune"
NOISE_POINTS = 1.0  # smallest difference that counts: the noise of kNN top-1 between seeds, measured on a prototype

Outcome = Literal["win", "loss", "open", "none"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of the SAGA runs with the baseline.

    Attributes:
        outcome: ``open`` if the difference is within noise or the SAGA runs disagree, ``none`` if there is nothing to
            compare.
        headline: one sentence.
        details: one sentence per run, then the caveats.
    """

    outcome: Outcome
    headline: str
    details: tuple[str, ...]


def judge(runs: Sequence[Run]) -> Verdict:
    """Compare each run with the run named "finetune".

    SAGA wins only if each SAGA run ends above the baseline by at least the noise: the best of several runs is not
    enough.
    """
    baseline = next((run for run in runs if run.name == BASELINE and run.top1()), None)
    remaining = [run for run in runs if run is not baseline]
    details = [_sentence(run, None if run is baseline else baseline) for run in runs]
    if baseline is not None:
        end = _last_epoch(baseline)
        details += [
            f"{run.name} was last evaluated at epoch {_last_epoch(run)}, {BASELINE} at {end}: not the same budget."
            for run in remaining
            if run.is_saga and run.top1() and _last_epoch(run) != end
        ]
    outcome, headline = _headline(baseline, [run for run in remaining if run.is_saga])
    return Verdict(outcome=outcome, headline=headline, details=tuple(details))


def _headline(baseline: Run | None, saga_runs: Sequence[Run]) -> tuple[Outcome, str]:
    judged = [run for run in saga_runs if run.top1()]
    if not saga_runs:
        return "none", "No verdict: none of these runs trained with SAGA."
    if baseline is None:
        return "none", f"No verdict: no run named “{BASELINE}” with a kNN evaluation to compare SAGA with."
    if not judged:
        return "none", "No verdict: no kNN evaluation (backbone, k = 20) of the SAGA runs."
    differences = [(_difference(run, baseline), _noise(run, baseline)) for run in judged]
    wins = sum(points >= noise for points, noise in differences)
    losses = sum(points <= -noise for points, noise in differences)
    outcome: Outcome = "win" if wins == len(judged) else "loss" if losses == len(judged) else "open"
    result = "SAGA wins" if outcome == "win" else "SAGA does not win"
    if len(judged) == 1:
        return outcome, f"{result}: {judged[0].name} ends {_compared(*differences[0])}."
    open_ = len(judged) - wins - losses
    return outcome, f"{result}: {len(judged)} SAGA runs, {wins} above {BASELINE}, {losses} below, {open_} within noise."


def _sentence(run: Run, baseline: Run | None) -> str:
    curve = run.top1()
    if not curve:
        return f"{run.name}: no kNN evaluation (backbone, k = 20)."
    (first_epoch, first), (last_epoch, last) = curve[0], curve[-1]
    text = f"{run.name}: kNN top-1 {100 * first:.1f} % at epoch {first_epoch}"
    if len(curve) > 1:
        text += f", {100 * last:.1f} % at epoch {last_epoch} ({100 * (last - first):+.1f} points)"
    return f"{text}; {_compared(_difference(run, baseline), _noise(run, baseline))}." if baseline else f"{text}."


def _compared(points: float, noise: float) -> str:
    if abs(points) < noise:
        return f"within noise of {BASELINE} ({points:+.1f} points, noise {noise:.1f}, one seed)"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {BASELINE}"


def _difference(run: Run, baseline: Run) -> float:
    """Points of kNN top-1 above the baseline, at the last evaluations."""
    # Rounded before the comparison, so that the verdict agrees with the printed figure.
    return round(100 * (run.top1()[-1][1] - baseline.top1()[-1][1]), 1)


def _noise(run: Run, baseline: Run) -> float:
    """The difference in points that is noise: 95 % interval of the binomial, and at least NOISE_POINTS."""
    images = run.knn[-1].get("images")
    if not isinstance(images, int) or images < 1:
        return NOISE_POINTS
    variance = sum(p * (1.0 - p) / images for p in (run.top1()[-1][1], baseline.top1()[-1][1]))
    return max(NOISE_POINTS, round(196.0 * math.sqrt(variance), 1))


def _last_epoch(run: Run) -> int:
    return run.top1()[-1][0]
