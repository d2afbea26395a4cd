"""The study's data, methods and arms, and the stages in which they are run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from saga_fast.attention import AttentionConfig
from saga_fast.loaders.config import DemoDataConfig

Given = Literal["true", "shuffled", "centre", "whole", "classifier", "imagenet"]

OBJECT_SIDES = {"small": (0.3, 0.5), "middle": (0.4, 0.7), "large": (0.5, 0.9)}
"""Range of the object's side over the image's."""
PAPER = AttentionConfig()
SAGA_PLUS = replace(PAPER, score="background", mirror=True, delta=0.6, input_size=72, views="mixed")
"""The first recipe. The rows of study.json have the score ``background`` as it was before commit b50feb7."""
CENTRED = replace(PAPER, crop="centred")
"""ContrastiveCrop's rule: crops as large as those of whole images, their centres in the box, for both views."""
RETIRED_SCORES = {"norm": "74072f8"}
"""Scores that the package no longer has -> the commit at which their boxes were scored."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The further epochs after the plain ones.

    Attributes:
        title: in the tables.
        attention: the config's ``attention``, with the study's period; None: fine-tuning.
        period: in place of the study's.
        given: the source of the boxes, if it is not the trained network: ``true``, the true boxes; ``shuffled``, the
            plain checkpoint's boxes shuffled among the images; ``centre``, the same centred box for all images;
            ``whole``, the whole images;
            ``classifier``, the attention of a classifier of the labels; ``imagenet``, that of ImageNet's classes.
        more_epochs: beyond those of the remaining arms.
        retired: the commit of the arm's rows, if it needs an option that the package no longer has.
    """

    title: str
    attention: AttentionConfig | None = None
    period: int | None = None
    given: Given | None = None
    more_epochs: int = 0
    retired: str | None = None


def _att(title: str, attention: AttentionConfig, *, period: int | None = None) -> Arm:
    return Arm(title=title, attention=attention, period=period)


def _given(title: str, given: Given, attention: AttentionConfig) -> Arm:
    return Arm(title=title, attention=attention, given=given)


def _retired(title: str, commit: str) -> Arm:
    return Arm(title=title, retired=commit)


MIXED = replace(PAPER, views="mixed")
ARMS: dict[str, Arm] = {
    "finetune": Arm(title="fine-tuning"),
    "saga": _att("`saga`: att, pseudo_label, .7", PAPER),
    "saga+": _att("`saga+`: mixed, background, mirror, 72 px, .6", SAGA_PLUS),
    "shuffled": _given("control: `saga+`'s boxes shuffled among the images", "shuffled", SAGA_PLUS),
    "true": _given("true boxes, mixed", "true", MIXED),
    "finetune-longer": Arm(title="fine-tuning, two epochs more: the time of `saga+`'s renewals", more_epochs=2),
    "mixed": _att("mixed, pseudo_label, .7", MIXED),
    "saga+margin": _retired("`saga+` with margin .15", "f5fe613"),
    "saga+att-margin": _retired("att, background, mirror, 72 px, .6, margin .3", "f5fe613"),
    "mixed-activation": _att("mixed, activation, .5", replace(MIXED, score="activation", delta=0.5)),
    "mixed-background": _att("mixed, background, 48 px, .6, no mirror", replace(MIXED, score="background", delta=0.6)),
    "union": _att("union, pseudo_label, .7", replace(PAPER, views="union")),
    "saga+once": _att("`saga+`, boxes made once", SAGA_PLUS, period=1000),
    "saga+2": _att("`saga+` renewed every 2 epochs", SAGA_PLUS, period=2),
    "saga+48": _att("`saga+` with an input of 48 px", replace(SAGA_PLUS, input_size=None)),
    "saga+48.5": _att("`saga+` with an input of 48 px, delta .5", replace(SAGA_PLUS, input_size=None, delta=0.5)),
    "saga+.5": _att("`saga+` with delta .5", replace(SAGA_PLUS, delta=0.5)),
    "saga+.7": _att("`saga+` with delta .7", replace(SAGA_PLUS, delta=0.7)),
    "true-att": _given("true boxes, att", "true", PAPER),
    "centre": _given("mixed, the same centred box for all", "centre", MIXED),
    "true-margin": _retired("true boxes, mixed, margin .15", "f5fe613"),
    "saga+union": _att("`saga+` with union", replace(SAGA_PLUS, views="union")),
    "saga+stream": _retired("`saga+`, streaming", "6be8157"),
    "saga+stream1": _retired("`saga+`, streaming, renewed at every epoch", "6be8157"),
    "saga+stream0": _retired("`saga+`, streaming, nothing kept of earlier epochs", "6be8157"),
    "saga+stream.9": _retired("`saga+`, streaming, decay .9", "6be8157"),
    "stream": _retired("att, pseudo_label, .7, streaming", "6be8157"),
    "stream-activation": _retired("mixed, activation, .5, streaming", "6be8157"),
    "saga+changed": _att("`saga+`, of changed images, every 2 epochs", replace(SAGA_PLUS, renew="changed"), period=2),
    "saga+fraction": _retired("`saga+`, of a quarter of the images, every 2 epochs", "944c393"),
    "mixed-norm": _retired("mixed, norm, .7", "f5fe613"),
    "mixed-pseudo-.5": _att("mixed, pseudo_label, .5", replace(MIXED, delta=0.5)),
    "saga+att": _att("`saga+` with att", replace(SAGA_PLUS, views="att")),
    "supervised": _given("a classifier's boxes: att, pseudo_label, .7", "classifier", PAPER),
    "supervised-mixed": _given("a classifier's boxes: mixed, pseudo_label, .7", "classifier", MIXED),
    "contrastivecrop": _att(
        "ContrastiveCrop: att, centred, activation, .1", replace(CENTRED, score="activation", delta=0.1)
    ),
    "saga-centred": _att("att, centred, pseudo_label, .7", CENTRED),
    "saga+att-centred": _att("`saga+`'s boxes: att, centred", replace(SAGA_PLUS, views="att", crop="centred")),
    "saga+centred": _att("`saga+`'s boxes: mixed, centred", replace(SAGA_PLUS, crop="centred")),
    "true-centred": _given("true boxes: att, centred", "true", CENTRED),
}
"""Name -> arm."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the study: an arm, from the plain checkpoint of its data, method and seed.

    Attributes:
        data: a key of OBJECT_SIDES, with "+distractor" if there is a second object next to the first.
    """

    stage: str
    data: str
    method: str
    seed: int
    arm: str

    @property
    def name(self) -> str:
        """Unique; also the path of the run's folder in ``--runs``."""
        return f"{self.data}/{self.method}-{self.seed}/{self.arm}"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the study, which is cut to the time of one core."""

    num_train: int = 2000
    num_val: int = 3000
    side: int = 72
    size: int = 48
    plain_epochs: int = 16
    saga_epochs: int = 10
    period: int = 5
    k: int = 20

    def data(self, name: str) -> DemoDataConfig:
        """The images of a run's ``data``."""
        sides, _, distractor = name.partition("+")
        return DemoDataConfig(
            num_train=self.num_train,
            num_val=self.num_val,
            side=self.side,
            object_side=OBJECT_SIDES[sides],
            distractor=bool(distractor),
        )


TINY = Scale(num_train=24, num_val=24, side=48, size=32, plain_epochs=1, saga_epochs=1, period=1, k=3)
"""Seconds, and figures that mean nothing."""

FINALS = ("finetune", "saga+", "true", "shuffled", "saga")
ADDED = ("supervised-mixed", "saga-centred", "saga+att-centred", "true-centred", "saga+stream", "saga+changed")
"""Arms at the finals' seeds of SimCLR: the classifier's better arm in the screening, ContrastiveCrop's rule with wide,
tight and true boxes, which the screening did not distinguish, and two cheaper renewals."""
METHODS = ("simclr", "mocov2", "invspread")
SEEDS = (1, 2, 3)
STAGES = ("screening", "finals", "added", "sizes", "distractor")


def stages() -> Iterator[Run]:
    """All runs, the most informative first. The screening has a seed of its own: its choices are tested on new ones."""
    yield from (Run(stage="screening", data="middle", method="simclr", seed=0, arm=arm) for arm in ARMS)
    for method in METHODS:
        for seed in SEEDS:
            yield from (Run(stage="finals", data="middle", method=method, seed=seed, arm=arm) for arm in FINALS)
    for seed in SEEDS:
        yield from (Run(stage="added", data="middle", method="simclr", seed=seed, arm=arm) for arm in ADDED)
    for seed in SEEDS:
        for data in ("small", "large"):
            yield from (Run(stage="sizes", data=data, method="simclr", seed=seed, arm=arm) for arm in FINALS[:2])
        yield from (
            Run(stage="distractor", data="middle+distractor", method="simclr", seed=seed, arm=arm) for arm in FINALS[:3]
        )
