"""What the study compares: data, methods, arms, and the stages that they are run in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from saga_fast.demo_data import DemoDataConfig

Given = Literal["true", "shuffled", "centre"]

OBJECT_SIDES = {"small": (0.3, 0.5), "middle": (0.4, 0.7), "large": (0.5, 0.9)}
"""Range of the object's side over the image's; the demo's is ``middle``."""
SAGA_PLUS: dict[str, Any] = {"score": "background", "mirror": True, "delta": 0.6, "input_size": 72, "views": "mixed"}

SUPERVISED: dict[str, Any] = {"provider": "supervised"}
"""The classifier is trained on the labels of the training images, for as long as the plain phase."""
CENTRED: dict[str, Any] = {"views": "att", "crop": "centred"}
"""ContrastiveCrop's rule: crops as large as those of whole images, their centres in the box, for both views."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What the further epochs do after the plain ones."""

    title: str
    attention: dict[str, Any] | None = None
    """Overrides of the config's ``attention``; None: fine-tuning."""
    given: Given | None = None
    """Boxes from a table in place of the network's own: the true ones; those that ``attention`` gives at the plain
    checkpoint, shuffled among the images; or the same centred box for every image."""
    more_epochs: int = 0
    """Beyond those of the other arms."""


def _own(title: str, **attention: Any) -> Arm:
    return Arm(title=title, attention=attention)


ARMS: dict[str, Arm] = {
    "finetune": Arm(title="fine-tuning"),
    "saga": _own("`saga`: att, pseudo_label, .7", views="att"),
    "saga+": _own("`saga+`: mixed, background, mirror, 72 px, .6", **SAGA_PLUS),
    "shuffled": Arm(title="control: `saga+`'s boxes shuffled among the images", attention=SAGA_PLUS, given="shuffled"),
    "true": Arm(title="true boxes, mixed", attention={"views": "mixed"}, given="true"),
    "finetune-longer": Arm(title="fine-tuning, two epochs more: the time of `saga+`'s renewals", more_epochs=2),
    "mixed": _own("mixed, pseudo_label, .7", views="mixed"),
    "saga+margin": _own("`saga+` with margin .15", **SAGA_PLUS, margin=0.15),
    "saga+att-margin": _own(
        "att, background, mirror, 72 px, .6, margin .3", **SAGA_PLUS | {"views": "att"}, margin=0.3
    ),
    "mixed-activation": _own("mixed, activation, .5", views="mixed", score="activation", delta=0.5),
    "mixed-background": _own("mixed, background, 48 px, .6, no mirror", views="mixed", score="background", delta=0.6),
    "union": _own("union, pseudo_label, .7", views="union"),
    "saga+once": _own("`saga+`, boxes made once", **SAGA_PLUS, period=1000),
    "saga+2": _own("`saga+` renewed every 2 epochs", **SAGA_PLUS, period=2),
    "saga+48": _own("`saga+` looking at 48 px", **SAGA_PLUS | {"input_size": None}),
    "saga+48.5": _own("`saga+` looking at 48 px, delta .5", **SAGA_PLUS | {"input_size": None, "delta": 0.5}),
    "saga+.5": _own("`saga+` with delta .5", **SAGA_PLUS | {"delta": 0.5}),
    "saga+.7": _own("`saga+` with delta .7", **SAGA_PLUS | {"delta": 0.7}),
    "true-att": Arm(title="true boxes, att", attention={"views": "att"}, given="true"),
    "centre": Arm(title="mixed, the same centred box for all", attention={"views": "mixed"}, given="centre"),
    "true-margin": Arm(
        title="true boxes, mixed, margin .15", attention={"views": "mixed", "margin": 0.15}, given="true"
    ),
    "saga+union": _own("`saga+` with union", **SAGA_PLUS | {"views": "union"}),
    "saga+stream": _own("`saga+`, streaming", **SAGA_PLUS, renew="streaming"),
    "saga+stream1": _own("`saga+`, streaming, renewed at every epoch", **SAGA_PLUS, renew="streaming", period=1),
    "saga+stream0": _own(
        "`saga+`, streaming, nothing kept of earlier epochs", **SAGA_PLUS, renew="streaming", decay=0.0
    ),
    "saga+stream.9": _own("`saga+`, streaming, decay .9", **SAGA_PLUS, renew="streaming", decay=0.9),
    "stream": _own("att, pseudo_label, .7, streaming", views="att", renew="streaming"),
    "stream-activation": _own(
        "mixed, activation, .5, streaming", views="mixed", score="activation", delta=0.5, renew="streaming"
    ),
    "saga+changed": _own("`saga+`, of changed images, every 2 epochs", **SAGA_PLUS, renew="changed", period=2),
    "saga+fraction": _own(
        "`saga+`, of a quarter of the images, every 2 epochs", **SAGA_PLUS, renew="fraction", period=2
    ),
    "mixed-norm": _own("mixed, norm, .7", views="mixed", score="norm"),
    "mixed-pseudo-.5": _own("mixed, pseudo_label, .5", views="mixed", delta=0.5),
    "saga+att": _own("`saga+` with att", **SAGA_PLUS | {"views": "att"}),
    "supervised": _own("a classifier's boxes: att, pseudo_label, .7", **SUPERVISED, views="att"),
    "supervised-mixed": _own("a classifier's boxes: mixed, pseudo_label, .7", **SUPERVISED, views="mixed"),
    "contrastivecrop": _own("ContrastiveCrop: att, centred, activation, .1", **CENTRED, score="activation", delta=0.1),
    "saga-centred": _own("att, centred, pseudo_label, .7", **CENTRED),
    "saga+att-centred": _own("`saga+`'s boxes: att, centred", **SAGA_PLUS | CENTRED),
    "saga+centred": _own("`saga+`'s boxes: mixed, centred", **SAGA_PLUS | CENTRED | {"views": "mixed"}),
    "true-centred": Arm(title="true boxes: att, centred", attention=CENTRED, given="true"),
}
"""Name -> arm. What an arm does not say is the paper's reading, ``AttentionConfig``'s default."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the study: an arm, from the plain checkpoint of its data, method and seed."""

    stage: str
    data: str
    """A key of :data:`OBJECT_SIDES`, with "+distractor" where a second object stands beside the first."""
    method: str
    seed: int
    arm: str

    @property
    def name(self) -> str:
        """Unique, and the run's folder below ``--runs``."""
        return f"{self.data}/{self.method}-{self.seed}/{self.arm}"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the study is: it is cut to the time that one core has."""

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
"""Beside SimCLR's finals: the classifier's better arm in the screening, and ContrastiveCrop's rule with wide, tight and
true boxes, which the screening did not tell apart."""
METHODS = ("simclr", "mocov2", "invspread")
SEEDS = (1, 2, 3)


def stages() -> Iterator[Run]:
    """Every run, the most telling first. Screening has a seed of its own, so that what it chooses is tested anew."""
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


STAGES = ("screening", "finals", "added", "sizes", "distractor")
