"""The verdict as text: kNN top-1 on the backbone, k = 20, at the last evaluations, SAGA against fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from saga_fast.report.accuracies import final, knn, mean_deviation, seeds
from saga_fast.report.comparison import Comparison, compare, last_knn
from saga_fast.report.groups import FINE_TUNING, Group, differing_keys, group_runs, missing_settings, seed
from saga_fast.report.runs import Run

MAX_KEYS = 4  # of the config, named in one caveat

Outcome = Literal["win", "loss", "open", "none"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The comparison of the SAGA groups with the fine-tuning of their methods.

    Attributes:
        outcome: ``open`` if a difference is within noise or the SAGA groups disagree, ``none`` if there is nothing to
            compare.
        headline: one sentence.
        details: one sentence per group, then the caveats.
    """

    outcome: Outcome
    headline: str
    details: tuple[str, ...]


def judge(runs: Sequence[Run]) -> Verdict:
    """Compare each group of runs with the fine-tuning of the same method, seed by seed.

    SAGA wins only if each SAGA group that can be compared ends above fine-tuning by at least the noise: the best of
    several groups is not enough.
    """
    groups = group_runs(runs)
    comparisons = compare(groups)
    outcome, headline = _headline([comparison for comparison in comparisons if comparison.is_saga])
    by_group = {id(comparison.group): comparison for comparison in comparisons}
    details = [_sentence(group, by_group.get(id(group))) for group in groups]
    details += [caveat for comparison in comparisons for caveat in _comparison_caveats(comparison)]
    details += [caveat for group in groups for caveat in _group_caveats(group)]
    details += [caveat for run in runs for caveat in _config_caveat(run)]
    return Verdict(outcome=outcome, headline=headline, details=tuple(details))


def _headline(comparisons: Sequence[Comparison]) -> tuple[Outcome, str]:
    if not comparisons:
        return "none", "No verdict: none of these runs trained with SAGA."
    judged = [comparison for comparison in comparisons if comparison.gains]
    if not judged:
        reasons = dict.fromkeys(comparison.obstacle for comparison in comparisons)
        return "none", f"No verdict: {'; '.join(reasons)}."
    sides = [comparison.side for comparison in judged]
    wins, losses = sides.count("above"), sides.count("below")
    outcome: Outcome = "win" if wins == len(judged) else "loss" if losses == len(judged) else "open"
    result = "SAGA wins" if outcome == "win" else "SAGA does not win"
    if len(comparisons) == 1:
        return outcome, f"{result}: {judged[0].group.name} ends {judged[0].text}."
    rest = len(comparisons) - len(judged)
    counts = f"{wins} above {FINE_TUNING}, {losses} below, {sides.count('within noise')} within noise"
    return outcome, f"{result}: {len(comparisons)} SAGA groups, {counts}{f', {rest} not compared' if rest else ''}."


def _sentence(group: Group, comparison: Comparison | None) -> str:
    text = f"{group.name} ({group.run_names}): {_accuracy(group)}"
    # A group without an evaluation has said so.
    return f"{text}; {comparison.text}." if comparison and last_knn(group) else f"{text}."


def _accuracy(group: Group) -> str:
    summary = last_knn(group)
    if summary is None:
        return "no kNN evaluation (backbone, k = 20)" + (" of its own epochs" if any(map(knn, group.runs)) else "")
    if len(group.runs) > 1:
        values = list(summary.percent.values())
        return f"kNN top-1 {mean_deviation(values)} % at epoch {summary.epoch} ({seeds(len(values))})"
    curve = knn(group.runs[0])
    first, (last,) = curve[0], summary.percent.values()
    if first.epoch == summary.epoch:
        return f"kNN top-1 {last:.1f} % at epoch {summary.epoch}"
    points = last - 100 * first.top1
    start = f"kNN top-1 {100 * first.top1:.1f} % at epoch {first.epoch}"
    return f"{start}, {last:.1f} % at epoch {summary.epoch} ({points:+.1f} points)"


def _comparison_caveats(comparison: Comparison) -> list[str]:
    group, baseline = comparison.group, comparison.baseline
    if baseline is None:
        return []
    caveats = [
        f"{run.name} has no partner: no run with seed {seed(run)} counts in"
        f" {(baseline if run in group.runs else group).name}."
        for run in comparison.without_partner
    ]
    if comparison.gains:
        caveats += _budgets(group, baseline, comparison.gains)
        caveats += _differences(group, baseline)
    return caveats


def _budgets(group: Group, baseline: Group, gains: dict[str, float]) -> list[str]:
    """A caveat per pair of seeds that were last evaluated at different epochs."""
    partners = {seed(run): run for run in baseline.runs}
    ends = [
        (run, partners[seed(run)], _end(run), _end(partners[seed(run)])) for run in group.runs if seed(run) in gains
    ]
    return [
        f"{run.name} was last evaluated at epoch {end}, {partner.name} at {other}: not the same budget."
        for run, partner, end, other in ends
        if end != other
    ]


def _differences(group: Group, baseline: Group) -> list[str]:
    """A caveat for a baseline whose config differs in more than ``attention``."""
    keys = differing_keys(group, baseline)
    if group.from_scratch != baseline.from_scratch:
        keys = ["plain epochs in the same run", *keys]
    if not keys or not (group.runs[0].config and baseline.runs[0].config):
        return []
    more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
    return [f"{group.name} and {baseline.name} differ in more than attention: {', '.join(keys[:MAX_KEYS])}{more}."]


def _group_caveats(group: Group) -> list[str]:
    caveats = []
    if summary := last_knn(group):
        ends = [(run, _end(run)) for run in group.runs]
        caveats += [
            f"{run.name} is not in the mean of {group.name}: "
            + ("not evaluated yet." if end is None else f"last evaluated at epoch {end}, not {summary.epoch}.")
            for run, end in ends
            if end != summary.epoch
        ]
    caveats += [
        f"{run.name} does not count: {group.name} already has a run with seed {seed(run)}." for run in group.repeated
    ]
    return caveats


def _config_caveat(run: Run) -> list[str]:
    missing = missing_settings(run)
    if not missing:
        return []
    if not run.config:
        return [f"{run.name} has no config: its arm is read from its records, its method and seed are unknown."]
    guesses = {"method.name": "its method is unknown", "saga.epochs": "its arm is read from its records"}
    return [f"{run.name}: its config lacks {', '.join(missing)}; {', '.join(guesses[key] for key in missing)}."]


def _end(run: Run) -> int | None:
    accuracy = final(run, knn)
    return accuracy.epoch if accuracy else None
