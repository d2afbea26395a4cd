"""The tables of docs/study.md, from the rows of study.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.markdown import METHOD_NAMES, NONE, points, table
from benchmarks.pages.study_rows import StudyRows, accuracy_before, last_corloc, renewal_share
from benchmarks.study.arms import ADDED, ARMS, FINALS, METHODS, OBJECT_SIDES, RETIRED_SCORES, Scale

HEADS = [METHOD_NAMES[method] for method in METHODS]
RETIRED = "†"
"""Marks options that the package no longer has."""


def title(arm: str) -> str:
    """The arm's title, marked if it is retired."""
    return f"{ARMS[arm].title} {RETIRED}" if ARMS[arm].retired else ARMS[arm].title


def maker_name(maker: str) -> str:
    """The maker of boxes, marked if its score is retired."""
    return f"{maker} {RETIRED}" if maker.partition(",")[0] in RETIRED_SCORES else maker


def conditions(rows: StudyRows, document: Mapping[str, Any]) -> str:
    """Hardware, versions and sizes."""
    scale, hardware = Scale(), document["hardware"]
    seconds = [row["train_seconds"] / row["epochs"][1] for row in rows.where(arm="finetune").rows]
    return (
        f"kNN with k = {scale.k}; mean and standard deviation over three seeds if no other number is named."
        f" {scale.num_train} training and\n{scale.num_val} validation images of {scale.side} px, 12 classes, views of"
        f" {scale.size} px; {scale.plain_epochs} plain epochs, then {scale.saga_epochs} more per arm, D^att\nrenewed"
        f" every {scale.period}. One thread of an {hardware['cpu'].replace('(R)', '')}, torch"
        f" {document['versions']['torch']}; the quickest fine-tuning took {min(seconds):.1f} s per\nepoch.\n"
    )


def screening(rows: StudyRows) -> str:
    """One seed: all arms, and the commits of the retired ones."""
    lines, screened = [], rows.where(stage="screening")
    base = screened.by_seed("finetune")
    for arm in ARMS:
        for row in screened.where(arm=arm).rows:
            fields = ("corloc", "iou", "box_area")
            cells = [f"{row['renewals'][-1][field]:.2f}" for field in fields] if row["renewals"] else [NONE] * 3
            gain = f"{100 * (row['accuracy'] - base[row['seed']]):+.1f}" if base else NONE
            lines.append([title(arm), f"{100 * row['accuracy']:.1f}", gain, *cells])
    text = table(["the further epochs", "kNN", "over fine-tuning", "CorLoc", "IoU", "box area"], lines)
    commits = ", ".join(dict.fromkeys(arm.retired for arm in ARMS.values() if arm.retired))
    return f"{text}\n{RETIRED} The package no longer has this option; the rows ran at commits {commits}.\n"


def finals(rows: StudyRows) -> str:
    """Middle objects, all methods: kNN, and gains over fine-tuning paired by seed."""
    by_method = [rows.where(stage="finals", method=method) for method in METHODS]
    before = [points(some.values("finetune", accuracy_before)) for some in by_method]
    lines = [["before: the plain checkpoint", *before]]
    lines += [[title(arm), *(points(some.values(arm)) for some in by_method)] for arm in FINALS]
    gains = [[title(arm), *(points(some.gain(arm), signed=True) for some in by_method)] for arm in FINALS[1:]]
    return f"{table(['kNN, whole images', *HEADS], lines)}\n{table(['gain over fine-tuning', *HEADS], gains)}"


def corlocs(rows: StudyRows) -> str:
    """CorLoc of the finals' boxes at the last renewal, and the time of the renewals."""
    by_method = [rows.where(stage="finals", method=method) for method in METHODS]
    lines = [[title(arm), *(points(some.values(arm, last_corloc)) for some in by_method)] for arm in ("saga", "saga+")]
    for arm in ("saga", "saga+"):
        shares = [points(some.values(arm, renewal_share)) for some in by_method]
        lines.append([f"time of the renewals over the epochs', `{arm}`", *shares])
    return table(["%", *HEADS], lines)


def added(rows: StudyRows) -> str:
    """SimCLR at the middle size: the added arms, with those of the finals."""
    tested = rows.tested().where(data="middle", method="simclr")
    lines = [[title("finetune"), points(tested.values("finetune")), NONE, NONE]]
    for arm in ("saga+", "true", *ADDED):
        gain, corloc = points(tested.gain(arm), signed=True), points(tested.values(arm, last_corloc))
        lines.append([title(arm), points(tested.values(arm)), gain, corloc])
    tops = {row["seed"]: row["classifier_top1"] for row in tested.rows if "classifier_top1" in row}
    text = table(["the further epochs", "kNN", "over fine-tuning", "CorLoc"], lines)
    return f"{text}\nThe classifiers' top-1 on whole validation images is {points(list(tops.values()))} %.\n"


def sizes(rows: StudyRows) -> str:
    """SimCLR at the three object sizes, and with two objects."""
    lines = []
    for data in (*OBJECT_SIDES, "middle+distractor"):
        stage = {"middle": "finals", "middle+distractor": "distractor"}.get(data, "sizes")
        some = rows.where(stage=stage, data=data, method="simclr")
        if not some.rows:
            continue
        low, high = OBJECT_SIDES[data.partition("+")[0]]
        lines.append(
            [
                f"{data.replace('+', ' and a ')} ({100 * low:.0f} to {100 * high:.0f} %)",
                points(some.values("finetune", accuracy_before)),
                *(points(some.values(arm)) for arm in ("finetune", "saga+", "true")),
                points(some.gain("saga+"), signed=True),
                points(some.values("saga+", last_corloc)),
            ]
        )
    head = ["object's side", "before", "fine-tuning", "`saga+`", "true boxes", "gain of `saga+`", "CorLoc"]
    return table(head, lines)


def boxes(rows: StudyRows) -> str:
    """Makers of boxes: CorLoc at the threshold that is best on the first network, there and on the other networks."""
    scored = rows.where(stage="boxes").rows
    networks = list(dict.fromkeys((row["data"], row["method"], row["seed"]) for row in scored))
    if not networks:
        return ""
    by_network = {((row["data"], row["method"], row["seed"]), row["maker"]): row for row in scored}
    lines = []
    for row in scored:
        if (row["data"], row["method"], row["seed"]) != networks[0]:
            continue
        delta, maker = str(row["delta"]), row["maker"]
        further = [by_network.get((network, maker)) for network in networks[1:]]
        cells = [f"{one['deltas'][delta]['corloc']:.2f}" if one else NONE for one in further]
        figures = [f"{row['accuracy']:.2f}", f"{row['iou']:.2f}", f"{row['otsu']['corloc']:.2f}"]
        lines.append([maker_name(maker), f"{row['forwards']:.3g}", delta, *figures, *cells])
    heads = [f"{METHOD_NAMES[method]}, {data.replace('+', ' and a ')}" for data, method, _ in networks]
    head = ["map", "forwards", "delta", f"CorLoc: {heads[0]}", "IoU", "CorLoc, Otsu's threshold", *heads[1:]]
    commits = ", ".join(RETIRED_SCORES.values())
    return f"{table(head, lines)}\n{RETIRED} The package no longer has this score; its boxes are of commit {commits}.\n"


def momentum(rows: StudyRows) -> str:
    """MoCo v2's encoder and key encoder."""
    scored = {row["maker"]: row for row in rows.where(stage="boxes", method="mocov2").rows}
    lines = []
    for maker, row in scored.items():
        key = scored.get(f"key encoder, {maker}")
        if key and maker.endswith(f", mirror, {Scale().size} px"):
            lines.append([maker_name(maker), f"{row['accuracy']:.2f}", f"{key['accuracy']:.2f}"])
    return table(["map", "CorLoc, encoder", "CorLoc, key encoder"], lines)
