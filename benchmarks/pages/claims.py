"""The recipe on outside sets: the tables of docs/study.md and the README, from the rows of claims.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.pages.markdown import METHOD_NAMES, NONE, points, table
from benchmarks.pages.study_rows import StudyRows, accuracy, accuracy_before
from benchmarks.study.claims import ARMS, CLAIM_SCALE, FINALS, MECHANISM
from saga_fast.profile.figures import Row

SETS = {
    "fashion": "cluttered fashion",
    "stamps": "stamps in scenes",
    "middle": "the demo's images",
    "small": "the demo's, small objects",
    "large": "the demo's, large objects",
    "middle+distractor": "the demo's, a distractor",
    "fashion-plate": "fashion on plates",
}
"""Key of a set -> its title."""
Figure = Callable[[Row], float]


def _column(column: str) -> Figure:
    return lambda row: float(row[column])


def _last(rows: StudyRows, arm: str, column: str) -> str:
    """A figure of the arm's last renewals; the first renewal has no agreement."""
    renewals = [row["renewals"][-1] for row in rows.where(arm=arm).rows if row["renewals"]]
    return points([renewal[column] for renewal in renewals if renewal[column] is not None])


def _corrected(rows: StudyRows, arm: str) -> str:
    """Range of the agreements of successive renewals, corrected for chance, over seeds and renewals."""
    values = []
    for row in rows.where(arm=arm).rows:
        for renewal in row["renewals"]:
            if (agreement := renewal["agreement"]) is not None:
                values.append((agreement - renewal["chance_agreement"]) / (1.0 - renewal["chance_agreement"]))
    return f"{100 * min(values):.0f} to {100 * max(values):.0f}" if values else NONE


def demo(rows: Mapping[str, Row]) -> str:
    """What the demo prints, in a sentence."""
    top1 = {arm: f"{100 * row['accuracy']:.1f}" for arm, row in rows.items()}
    corloc = {arm: f"{100 * rows[arm]['corloc']:.0f}" for arm in ("saga", "saga_plus")}
    minutes = sum(row["seconds"] for row in rows.values()) / 60
    return (
        f"`make demo` trains a small SimCLR plainly to kNN {top1['plain']} %, and from there 6 epochs more: fine-tuning"
        f" {top1['finetune']} %, SAGA\nas in the paper {top1['saga']} %, `saga+` {top1['saga_plus']} %. The paper's"
        f" boxes find {corloc['saga']} % of the objects, those of `saga+` {corloc['saga_plus']} %\n(CorLoc; one seed,"
        f" {minutes:.1f} minutes of training on two cores).\n"
    )


def conditions(document: Mapping[str, Any]) -> str:
    """Hardware, versions, sizes and times."""
    scale, rows = CLAIM_SCALE, [row for row in document["rows"] if "wall_seconds" in row]
    hours = sum(row["wall_seconds"] + row["evaluation_seconds"] for row in rows) / 3600
    commits = ", ".join(dict.fromkeys(row["commit"][:7] for row in rows))
    return (
        f"{scale.num_train} training and {scale.num_val} validation images of {scale.side} px, views of {scale.size}"
        f" px; {scale.plain_epochs} plain epochs, then {scale.saga_epochs} more per arm,\nD^att renewed every"
        f" {scale.period}. {len(rows)} runs, {hours:.1f} hours in all, each on one core of an"
        f" {document['hardware']['cpu'].replace('(R)', '')}, torch {document['versions']['torch']}; commit {commits}.\n"
    )


def _tested(rows: StudyRows) -> list[tuple[str, str, StudyRows]]:
    """(data, method, rows) of the seeds on which nothing was chosen."""
    rows = StudyRows([row for row in rows.rows if row["stage"] != "boxes"])
    pairs = dict.fromkeys((row["data"], row["method"]) for row in rows.rows if row["seed"] > 0)
    order = sorted(pairs, key=lambda pair: (list(SETS).index(pair[0]), list(METHOD_NAMES).index(pair[1])))
    tested = StudyRows([row for row in rows.rows if row["seed"] > 0])
    return [(data, method, tested.where(data=data, method=method)) for data, method in order]


def plates(rows: StudyRows) -> str:
    """True boxes with ``mixed``, where the box shows background and where it does not, one seed each."""
    lines = []
    for data, stage in (("fashion", "screening"), ("fashion-plate", "mechanism")):
        some = rows.where(stage=stage, data=data)
        for arm in ("true-mixed", "saga+"):
            gains = [points(_gain(some, arm, figure), signed=True) for figure in (accuracy, _column("probe"))]
            lines.append([f"{SETS[data]}: {ARMS[arm].title.partition(':')[0]}", points(some.values(arm)), *gains])
    return table(["the further epochs", "kNN", "over fine-tuning", "probe over fine-tuning"], lines)


def invspread(rows: StudyRows) -> str:
    """Inv. Spread on stamps, where the recipe does not gain: its controls, on the seed that lost most."""
    some, lines = rows.where(data="stamps", method="invspread"), []
    for arm in ("finetune", "saga+", "true", "mixed", "whole"):
        gains = [points(_gain(some, arm, figure), signed=True) for figure in (accuracy, _column("probe"))]
        lines.append([ARMS[arm].title, points(some.values(arm)), *gains])
    return table(["the further epochs", "kNN", "over fine-tuning", "probe over fine-tuning"], lines)


def supervised(rows: StudyRows) -> str:
    """An ImageNet classifier's boxes next to the recipe's and the true ones, one seed."""
    lines = []
    for data, method, some in _tested(rows):
        if some.where(arm="imagenet").rows:
            one = StudyRows([row for row in some.rows if row["seed"] == 1])
            for arm in ("saga+", "imagenet", "true"):
                gains = [points(_gain(one, arm, figure), signed=True) for figure in (accuracy, _column("probe"))]
                name = f"{SETS[data]}, {METHOD_NAMES[method]}: {ARMS[arm].title.partition(':')[0]}"
                lines.append([name, *gains, _last(one, arm, "corloc")])
    return table(["the boxes", "kNN over fine-tuning", "probe over fine-tuning", "CorLoc"], lines)


def _gain(rows: StudyRows, arm: str, figure: Figure) -> list[float]:
    with_arm = rows.by_seed(arm, figure)
    baseline = rows.by_seed("finetune", figure)
    return [with_arm[seed] - baseline[seed] for seed in sorted(with_arm.keys() & baseline.keys())]


def summary(rows: StudyRows) -> str:
    """Gains over fine-tuning by set and method."""
    lines = []
    for data, method, some in _tested(rows):
        if data == "fashion-plate" or not some.where(arm="saga+").rows:
            continue
        figures = (accuracy, _column("probe"), _column("knn_both"))
        gains = [points(_gain(some, "saga+", figure), signed=True) for figure in figures]
        seeds = some.by_seed("true").keys()
        same = StudyRows([row for row in some.rows if row["seed"] in seeds])
        true, own = (points(_gain(same, arm, accuracy), signed=True) for arm in ("true", "saga+"))
        true += f", `saga+` {own}"
        lines.append([f"{SETS[data]}, {METHOD_NAMES[method]}", *gains, true])
    head = [
        "gain of `saga+` over fine-tuning, points",
        "kNN",
        "linear probe",
        "kNN, whole and box",
        "kNN, true boxes, and `saga+` there",
    ]
    return table(head, lines)


def gains(rows: StudyRows) -> str:
    """README's short form: mean gains of kNN and of the linear probe, by set and method."""
    lines = []
    for data, method, some in _tested(rows):
        if data != "fashion-plate":
            cells = [points(_gain(some, "saga+", figure), signed=True) for figure in (accuracy, _column("probe"))]
            lines.append([f"{SETS[data]}, {METHOD_NAMES[method]}", *cells])
    return table(["`saga+` over fine-tuning, points", "kNN", "linear probe"], lines)


def accuracies(rows: StudyRows) -> str:
    """kNN and linear accuracies of the arms on whole images."""
    lines = []
    for data, method, some in _tested(rows):
        if data == "fashion-plate":
            continue
        cells = [points(some.values("finetune", accuracy_before))]
        cells += [points(some.values(arm)) for arm in FINALS]
        cells += [points(some.values(arm, _column("probe"))) for arm in FINALS[:2]]
        lines.append([f"{SETS[data]}, {METHOD_NAMES[method]}", *cells])
    titles = {"finetune": "fine-tuning", "saga+": "`saga+`", "true": "true boxes", "saga": "`saga`"}
    head = ["kNN", "before", *(titles[arm] for arm in FINALS), "probe: fine-tuning", "`saga+`"]
    return table(head, lines)


def boxes(rows: StudyRows) -> str:
    """The boxes of the last renewal, and the share of the true box that the object covers."""
    lines = []
    for data, method, some in _tested(rows):
        if not some.where(arm="saga+").rows:
            continue
        share = [row["object_share"] for row in some.where(arm="saga+").rows if "object_share" in row]
        arms = ("saga", "saga+")
        cells = [_last(some, arm, column) for column in ("corloc", "box_area") for arm in arms]
        cells += [_corrected(some, arm) for arm in arms]
        lines.append([f"{SETS[data]}, {METHOD_NAMES[method]}", *cells, f"{100 * share[0]:.0f}" if share else "100"])
    heads = [
        f"{figure}: `{arm}`" for figure in ("CorLoc", "box area", "agreement, corrected") for arm in ("saga", "saga+")
    ]
    head = ["%", *heads, "object in true box"]
    return table(head, lines)


def makers(rows: StudyRows) -> str:
    """CorLoc of the plain networks' boxes by score and region, each at its best threshold."""
    scored = rows.where(stage="boxes").rows
    networks = list(dict.fromkeys((row["data"], row["method"]) for row in scored))
    lines = []
    for maker, region in dict.fromkeys((row["maker"], row["region"]) for row in scored):
        some = {(row["data"], row["method"]): row for row in scored if (row["maker"], row["region"]) == (maker, region)}
        cells = [f"{100 * some[each]['accuracy']:.0f} (.{10 * some[each]['delta']:.0f})" for each in networks]
        lines.append([f"{maker}, {'all regions' if region == 'all' else 'the largest region'}", *cells])
    return table(["CorLoc, % (delta)", *(f"{SETS[data]}, {METHOD_NAMES[method]}" for data, method in networks)], lines)


def budget(rows: StudyRows) -> str:
    """The gain after 12 and after 24 epochs, one seed."""
    lines = []
    for data, method, some in _tested(rows):
        first = some.where(stage="budget")
        if not first.where(arm="saga+longer").rows:
            continue
        one = StudyRows([row for row in some.rows if row["seed"] == 1])
        cells = []
        for ending in ("", "-longer"):
            arms = ("finetune" + ending, "saga+" + ending.replace("-", ""))
            values = [one.by_seed(arm, figure)[1] for figure in (accuracy, _column("probe")) for arm in arms]
            cells += [f"{100 * value:.1f}" for value in values[:2]]
            cells += [f"{100 * (values[place + 1] - values[place]):+.1f}" for place in (0, 2)]
        lines.append([f"{SETS[data]}, {METHOD_NAMES[method]}", *cells])
    heads = [
        f"{name}, {count} epochs" for count in (12, 24) for name in ("fine-tuning", "`saga+`", "kNN gain", "probe gain")
    ]
    return table(["kNN", *heads], lines)


def mechanism(rows: StudyRows) -> str:
    """The screening's arms on cluttered fashion, one seed."""
    screening, lines = rows.where(stage="screening"), []
    for arm in ("finetune", "saga+", "true", *MECHANISM):
        some = screening.where(arm=arm)
        if not some.rows:
            continue
        gains = [points(_gain(screening, arm, figure), signed=True) for figure in (accuracy, _column("probe"))]
        lines.append([ARMS[arm].title, points(some.values(arm)), *gains, _last(some, arm, "corloc")])
    return table(["the further epochs", "kNN", "over fine-tuning", "probe over fine-tuning", "CorLoc"], lines)
