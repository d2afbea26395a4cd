"""The results of the first study's predictions."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.pages.markdown import METHOD_NAMES, points, table
from benchmarks.pages.study_rows import StudyRows, last_corloc
from benchmarks.study.arms import METHODS, OBJECT_SIDES


def _by_method(rows: StudyRows, arm: str, over: str = "finetune") -> str:
    gains = {method: rows.where(stage="finals", method=method).gain(arm, over) for method in METHODS}
    return ", ".join(f"{METHOD_NAMES[method]} {points(gain, signed=True)}" for method, gain in gains.items() if gain)


def _by_data(rows: StudyRows, stages: Mapping[str, str]) -> str:
    """Gains of ``saga+``; ``stages`` maps data to the stage of its runs."""
    gains = {data: rows.where(stage=stage, data=data, method="simclr").gain("saga+") for data, stage in stages.items()}
    return ", ".join(f"{data} {points(gain, signed=True)}" for data, gain in gains.items() if gain)


def _by_arm(rows: StudyRows, arms: Mapping[str, str]) -> str:
    """Gains of the arms, by their names in the text: on the tested seeds, or on the screening's if there are none."""
    tested, screened = rows.tested().where(data="middle", method="simclr"), rows.where(stage="screening")
    gains = {name: tested.gain(arm) or screened.gain(arm) for name, arm in arms.items()}
    return ", ".join(f"{name} {points(gain, signed=True)}" for name, gain in gains.items() if gain)


def predictions(rows: StudyRows) -> str:
    """Each prediction, and the measured gains."""
    corloc = points(rows.where(stage="screening").values("supervised", last_corloc))
    sizes = dict.fromkeys(OBJECT_SIDES, "sizes") | {"middle": "finals"}
    lines = [
        ["1. `saga` is 1 to 4 points below fine-tuning", _by_method(rows, "saga")],
        ["2. `saga+` is at least 4 above it, MoCo v2 least", _by_method(rows, "saga+")],
        ["3. shuffled boxes are within 2 of it", _by_method(rows, "shuffled")],
        ["4. `saga+` is within 3 of true boxes", _by_method(rows, "saga+", "true")],
        ["5. less for small objects, least for large", _by_data(rows, sizes)],
        [
            "6. with a distractor half of the gain",
            _by_data(rows, {"middle": "finals", "middle+distractor": "distractor"}),
        ],
        [
            "7. a classifier's boxes: CorLoc 30 to 60 %; both views within 3, `mixed` 3 to 7",
            f"CorLoc {corloc}; {_by_arm(rows, {'both': 'supervised', 'mixed': 'supervised-mixed'})}",
        ],
        [
            "8. ContrastiveCrop is within 2 of fine-tuning with boxes of `activation` or the pseudo label",
            _by_arm(rows, {"activation": "contrastivecrop", "pseudo_label": "saga-centred"}),
        ],
        [
            "9. with the boxes of `saga+` it gains 2 to 6; true boxes at most 2 more",
            _by_arm(rows, {"both": "saga+att-centred", "mixed": "saga+centred", "true": "true-centred"}),
        ],
    ]
    return table(["prediction", "measured, points of kNN"], lines)
