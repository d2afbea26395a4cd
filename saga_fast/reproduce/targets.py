"""The paper's tables and figures: the methods, arms and evaluation of each, and the published numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from saga_fast.report.paper import TABLE_1, TABLE_2

Arm = Literal["plain", "finetune", "saga", "supervised", "saga_plus"]
Evaluation = Literal["linear", "knn", "pairs"]

ARM_TITLES: dict[Arm, str] = {
    "plain": "Plain",
    "finetune": "Fine-tuning",
    "saga": "SAGA",
    "supervised": "Supervised attention",
    "saga_plus": "saga+",
}
"""Arm -> its column."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A table or figure of the paper.

    Attributes:
        title: the caption.
        configs: folder of the shipped configs, which is the name of the paper's data set.
        methods: keys of ``METHODS``, in the paper's order.
        arms: the columns or lines.
        evaluation: what is measured.
        is_curve: measured at each kept checkpoint, not at the last one alone.
        seeds: number of runs in the paper.
        published: rows of the paper: the method's name, then a number per arm.
    """

    title: str
    configs: str
    methods: tuple[str, ...]
    arms: tuple[Arm, ...]
    evaluation: Evaluation
    is_curve: bool = False
    seeds: int = 1
    published: tuple[tuple[str, ...], ...] = ()


_TABLE_1 = Target(
    title="Table 1: linear top-1 (%), ImageNet",
    configs="imagenet",
    methods=("insdis", "pirl", "moco", "cmc", "mocov2"),
    arms=("plain", "finetune", "saga"),
    evaluation="linear",
    published=TABLE_1,
)

TARGETS: dict[str, Target] = {
    "table1": _TABLE_1,
    "table2": Target(
        title="Table 2: kNN top-1 (%), ImageNet-100",
        configs="imagenet100",
        methods=("simclr", "invspread"),
        arms=("plain", "finetune", "saga", "supervised"),
        evaluation="knn",
        seeds=5,
        published=TABLE_2,
    ),
    "fig3": replace(_TABLE_1, title="Fig. 3: linear top-1 (%) by epoch, ImageNet", is_curve=True, published=()),
    "fig4": Target(
        title="Fig. 4: similarity of positive pairs, ImageNet",
        configs="imagenet",
        methods=("mocov2",),
        arms=("plain", "saga"),
        evaluation="pairs",
    ),
}
"""Name -> table or figure. The paper names no method for Fig. 4."""
