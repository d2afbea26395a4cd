"""Writes the study's figures into docs/study.md and README.md: ``python -m benchmarks.study.document``.

A part between ``<!-- study: NAME -->`` and ``<!-- end -->`` is made from benchmarks/results/study.json alone, so no
figure is typed by hand; a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.study.arms import ADDED, ARMS, FINALS, METHODS, OBJECT_SIDES, SEEDS, Scale
from saga_fast.profile.figures import Row

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "study.json"
PAGES = (ROOT / "docs" / "study.md", ROOT / "README.md")
NAMES = {"simclr": "SimCLR", "mocov2": "MoCo v2", "invspread": "Inv. Spread"}
PART = re.compile(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NONE = "-"


def points(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and standard deviation over seeds, in percentage points; how many, where they are not three."""
    if not values:
        return NONE
    text = f"{100 * mean(values):{'+' if signed else ''}.1f}"
    if len(values) > 1:
        text += f" ± {100 * stdev(values):.1f}"
    return text if len(values) == 3 else f"{text} ({len(values)} seed{'s' * (len(values) > 1)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


class Figures:
    """The rows of study.json, by what they are asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def runs(self, **wanted: Any) -> list[Row]:
        """Runs (not boxes) whose fields have these values."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]

    def by_seed(self, field: Callable[[Row], float] = lambda row: row["accuracy"], **wanted: Any) -> dict[int, float]:
        """Seed -> a field of the run."""
        return {row["seed"]: field(row) for row in self.runs(**wanted)}

    def gain(self, arm: str, over: str = "finetune", **wanted: Any) -> list[float]:
        """Over another arm, fine-tuning if none is named, from the same checkpoint, seed by seed."""
        own, other = self.by_seed(arm=arm, **wanted), self.by_seed(arm=over, **wanted)
        return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]

    def tested(self) -> Figures:
        """Those of the seeds that nothing was chosen on."""
        return Figures([row for row in self.rows if row["seed"] in SEEDS])


def last_corloc(row: Row) -> float:
    """CorLoc at the run's last renewal."""
    return float(row["renewals"][-1]["corloc"])


def conditions(figures: Figures, document: Mapping[str, Any]) -> str:
    """Hardware, versions and sizes."""
    scale, hardware = Scale(), document["hardware"]
    seconds = [row["train_seconds"] / row["epochs"][1] for row in figures.runs() if row.get("arm") == "finetune"]
    return (
        f"kNN with k = {scale.k}; mean and standard deviation over three seeds where no other number is named."
        f" {scale.num_train} training and {scale.num_val} validation images of {scale.side} px, 12 classes, views of"
        f" {scale.size} px; {scale.plain_epochs} plain epochs, then {scale.saga_epochs} more per arm, D^att renewed"
        f" every {scale.period}. One thread of an {hardware['cpu'].replace('(R)', '')}, torch"
        f" {document['versions']['torch']}; the quickest fine-tuning took {min(seconds):.1f} s per epoch.\n"
    )


def screening(figures: Figures, _: Mapping[str, Any]) -> str:
    """One seed: every arm."""
    rows = []
    base = figures.by_seed(stage="screening", arm="finetune")
    for arm, what in ARMS.items():
        for row in figures.runs(stage="screening", arm=arm):
            renewal = row["renewals"][-1] if row["renewals"] else None
            fields = ("corloc", "iou", "box_area")
            cells = [f"{renewal[field]:.2f}" for field in fields] if renewal else [NONE] * len(fields)
            gain = f"{100 * (row['accuracy'] - base[row['seed']]):+.1f}" if base else NONE
            rows.append([what.title, f"{100 * row['accuracy']:.1f}", gain, *cells])
    head = ["the further epochs", "kNN", "over fine-tuning", "CorLoc", "IoU", "box area"]
    return table(head, rows)


def finals(figures: Figures, _: Mapping[str, Any]) -> str:
    """Middle objects, all methods: kNN, and gains over fine-tuning paired by seed."""
    before = [figures.by_seed(lambda row: row["limit"], stage="finals", method=method) for method in METHODS]
    rows = [["before: the plain checkpoint", *(points(list(values.values())) for values in before)]]
    for arm in FINALS:
        accuracies = [list(figures.by_seed(stage="finals", arm=arm, method=method).values()) for method in METHODS]
        rows.append([ARMS[arm].title, *(points(values) for values in accuracies)])
    gains = [
        [ARMS[arm].title, *(points(figures.gain(arm, stage="finals", method=m), signed=True) for m in METHODS)]
        for arm in FINALS[1:]
    ]
    heads = [NAMES[method] for method in METHODS]
    first, second = table(["kNN, whole images", *heads], rows), table(["gain over fine-tuning", *heads], gains)
    return f"{first}\n{second}"


def corlocs(figures: Figures, _: Mapping[str, Any]) -> str:
    """CorLoc of the finals' boxes at the last renewal, and what the renewals cost."""
    rows = []
    for arm in ("saga", "saga+"):
        own = [figures.by_seed(last_corloc, stage="finals", arm=arm, method=method) for method in METHODS]
        rows.append([ARMS[arm].title, *(points(list(values.values())) for values in own)])
    for arm in ("saga", "saga+"):
        shares = [figures.by_seed(renewal_share, stage="finals", arm=arm, method=method) for method in METHODS]
        title = f"renewals' share of the time, `{arm}`"
        rows.append([title, *(points(list(values.values())) for values in shares)])
    return table(["%", *(NAMES[method] for method in METHODS)], rows)


def renewal_share(row: Row) -> float:
    """Seconds of the renewals over those of the epochs."""
    return float(sum(renewal["seconds"] for renewal in row["renewals"]) / row["train_seconds"])


def added(figures: Figures, _: Mapping[str, Any]) -> str:
    """SimCLR at the middle size: arms that were added to the finals, beside those."""
    tested = figures.tested()
    wanted: dict[str, Any] = {"data": "middle", "method": "simclr"}
    rows = []
    for arm in ("finetune", "saga+", "true", *ADDED):
        cells = [points(list(tested.by_seed(arm=arm, **wanted).values()))]
        cells.append(points(tested.gain(arm, **wanted), signed=True) if arm != "finetune" else NONE)
        cells.append(
            points(list(tested.by_seed(last_corloc, arm=arm, **wanted).values())) if arm != "finetune" else NONE
        )
        rows.append([ARMS[arm].title, *cells])
    own = {row["seed"]: row["classifier_top1"] for row in tested.rows if "classifier_top1" in row}
    text = table(["the further epochs", "kNN", "over fine-tuning", "CorLoc"], rows)
    return f"{text}\nThe classifiers name {points(list(own.values()))} % of the whole validation images right.\n"


def sizes(figures: Figures, _: Mapping[str, Any]) -> str:
    """SimCLR at the three object sizes, and with two objects."""
    rows = []
    for data in (*OBJECT_SIDES, "middle+distractor"):
        stage = {"middle": "finals", "middle+distractor": "distractor"}.get(data, "sizes")
        wanted: dict[str, Any] = {"stage": stage, "data": data, "method": "simclr"}
        if not figures.runs(**wanted):
            continue
        low, high = OBJECT_SIDES[data.partition("+")[0]]
        cells = [f"{data.replace('+', ' and a ')} ({100 * low:.0f} to {100 * high:.0f} %)"]
        cells.append(points(list(figures.by_seed(lambda row: row["limit"], arm="finetune", **wanted).values())))
        cells += [points(list(figures.by_seed(arm=arm, **wanted).values())) for arm in ("finetune", "saga+", "true")]
        cells.append(points(figures.gain("saga+", **wanted), signed=True))
        cells.append(points(list(figures.by_seed(last_corloc, arm="saga+", **wanted).values())))
        rows.append(cells)
    return table(["object's side", "before", "fine-tuning", "`saga+`", "true boxes", "gain of `saga+`", "CorLoc"], rows)


def boxes(figures: Figures, _: Mapping[str, Any]) -> str:
    """Makers of boxes: CorLoc at the threshold that is best on the first column, and there on the other networks."""
    rows = figures.runs(stage="boxes")
    bases = list(dict.fromkeys((row["data"], row["method"], row["seed"]) for row in rows))
    found = {((row["data"], row["method"], row["seed"]), row["maker"]): row for row in rows}
    lines = []
    for row in rows:
        if not bases or (row["data"], row["method"], row["seed"]) != bases[0]:
            continue
        delta = str(row["delta"])
        others = [found.get((base, row["maker"])) for base in bases[1:]]
        cells = [f"{other['deltas'][delta]['corloc']:.2f}" if other else NONE for other in others]
        otsu = f"{row['otsu']['corloc']:.2f}"
        first = [row["maker"], f"{row['forwards']:.3g}", delta, f"{row['accuracy']:.2f}", f"{row['iou']:.2f}", otsu]
        lines.append([*first, *cells])
    heads = [f"{NAMES[method]}, {data.replace('+', ' and a ')}" for data, method, _ in bases]
    if not heads:
        return ""
    head = ["map", "forwards", "delta", f"CorLoc: {heads[0]}", "IoU", "CorLoc, Otsu's threshold", *heads[1:]]
    return table(head, lines)


def momentum(figures: Figures, _: Mapping[str, Any]) -> str:
    """MoCo v2's key encoder beside its encoder."""
    rows = []
    for row in figures.runs(stage="boxes", method="mocov2"):
        prefix, _, maker = row["maker"].partition("key encoder, ")
        if prefix or not maker.endswith(f", mirror, {Scale().size} px"):
            continue
        own = next(r for r in figures.runs(stage="boxes", method="mocov2") if r["maker"] == maker)
        rows.append([maker, f"{own['accuracy']:.2f}", f"{row['accuracy']:.2f}"])
    return table(["map", "CorLoc, encoder", "CorLoc, key encoder"], rows)


def predictions(figures: Figures, _: Mapping[str, Any]) -> str:
    """What came of each prediction."""

    def by_method(arm: str, over: str = "finetune") -> str:
        gains = {method: figures.gain(arm, over, stage="finals", method=method) for method in METHODS}
        return ", ".join(f"{NAMES[method]} {points(gain, signed=True)}" for method, gain in gains.items() if gain)

    def by_data(stages: Mapping[str, str]) -> str:
        gains = {data: figures.gain("saga+", stage=stage, data=data, method="simclr") for data, stage in stages.items()}
        return ", ".join(f"{data} {points(gain, signed=True)}" for data, gain in gains.items() if gain)

    def by_arm(**names: str) -> str:
        """On the tested seeds, and where there are none on the screening's."""
        wanted = {"data": "middle", "method": "simclr"}
        gains = {
            name: figures.tested().gain(arm, **wanted) or figures.gain(arm, stage="screening")
            for name, arm in names.items()
        }
        return ", ".join(f"{name} {points(gain, signed=True)}" for name, gain in gains.items() if gain)

    corlocs = list(figures.by_seed(last_corloc, stage="screening", arm="supervised").values())
    sizes_of = dict.fromkeys(OBJECT_SIDES, "sizes") | {"middle": "finals"}
    rows = [
        ["1. `saga` is 1 to 4 points below fine-tuning", by_method("saga")],
        ["2. `saga+` is at least 4 above it, MoCo v2 least", by_method("saga+")],
        ["3. shuffled boxes are within 2 of it", by_method("shuffled")],
        ["4. `saga+` is within 3 of true boxes", by_method("saga+", "true")],
        [
            "5. less for small objects, least for large",
            by_data(sizes_of),
        ],
        ["6. with a distractor half of the gain", by_data({"middle": "finals", "middle+distractor": "distractor"})],
        [
            "7. a classifier's boxes: CorLoc 30 to 60 %; both views within 3, `mixed` 3 to 7",
            f"CorLoc {points(corlocs)}; {by_arm(both='supervised', mixed='supervised-mixed')}" if corlocs else "",
        ],
        [
            "8. ContrastiveCrop is within 2 of fine-tuning with boxes of `activation` or the pseudo label",
            by_arm(activation="contrastivecrop", pseudo_label="saga-centred"),
        ],
        [
            "9. with the boxes of `saga+` it gains 2 to 6; true boxes at most 2 more",
            by_arm(both="saga+att-centred", mixed="saga+centred", true="true-centred"),
        ],
    ]
    return table(["prediction", "measured, points of kNN"], [[first, second or "not run"] for first, second in rows])


def summary(figures: Figures, document: Mapping[str, Any]) -> str:
    """README's rows: gains over fine-tuning."""
    rows = []
    for method in METHODS:
        arms = ("saga", "shuffled", "saga+", "true")
        gains = [figures.gain(arm, stage="finals", method=method) for arm in arms]
        rows.append([NAMES[method], *(points(gain, signed=True) for gain in gains)])
    head = ["kNN over fine-tuning, points", "`saga`", "shuffled boxes", "`saga+`", "true boxes"]
    return f"{table(head, rows)}\n{conditions(figures, document)}"


Section = Callable[[Figures, Mapping[str, Any]], str]
ALL: tuple[Section, ...] = (conditions, screening, finals, corlocs, added, sizes, boxes, momentum, predictions, summary)
SECTIONS = {section.__name__: section for section in ALL}


def rewritten(text: str, document: Mapping[str, Any]) -> str:
    """A page with its generated parts made anew."""
    figures = Figures(document["rows"])
    return PART.sub(lambda part: part[1] + "\n" + SECTIONS[part[2]](figures, document) + "\n" + part[3], text)


def main() -> None:
    document = json.loads(RESULTS.read_text())
    for page in PAGES:
        page.write_text(rewritten(page.read_text(encoding="utf-8"), document), encoding="utf-8")


if __name__ == "__main__":
    main()
