"""The names of the generated parts, and the pages that hold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.pages import claims, gpu, renewals, robustness, speed, study, study_findings
from benchmarks.pages.results import ROOT, document, rows_of
from benchmarks.pages.study_rows import StudyRows

PART = re.compile(r"(<!-- figures: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def _study(section: Callable[[StudyRows], str]) -> str:
    return section(StudyRows(rows_of("study")))


def _claims(section: Callable[[StudyRows], str]) -> str:
    return section(StudyRows(rows_of("claims")))


PARTS: Mapping[str, Callable[[], str]] = {
    "speed": speed.speeds,
    "gpu speed": gpu.speeds,
    "gpu engines": gpu.engines,
    "engines": speed.engines,
    "pass on a CPU": speed.pass_on_cpu,
    "pass precision": speed.pass_precision,
    "build-att scaling": speed.build_att_scaling,
    "input size": renewals.input_sizes,
    "scaled decode": renewals.scaled_decode,
    "incremental": renewals.incremental,
    "renewal share": renewals.renewal_share,
    "pass memory": renewals.pass_memory,
    "streaming": renewals.streaming,
    "demo": renewals.demo,
    "objectives": renewals.objectives,
    "token pass": speed.token_pass,
    "online": speed.online,
    "peers": speed.peers,
    "torture": robustness.torture,
    "busy": robustness.busy,
    "capacity": robustness.capacity,
    "large set": robustness.large_set,
    "study conditions": lambda: study.conditions(StudyRows(rows_of("study")), document("study")),
    "study screening": partial(_study, study.screening),
    "study finals": partial(_study, study.finals),
    "study corlocs": partial(_study, study.corlocs),
    "study added": partial(_study, study.added),
    "study sizes": partial(_study, study.sizes),
    "study boxes": partial(_study, study.boxes),
    "study momentum": partial(_study, study.momentum),
    "study predictions": partial(_study, study_findings.predictions),
    "claims conditions": lambda: claims.conditions(document("claims")),
    "claims gains": partial(_claims, claims.gains),
    "claims summary": partial(_claims, claims.summary),
    "claims accuracies": partial(_claims, claims.accuracies),
    "claims boxes": partial(_claims, claims.boxes),
    "demo arms": lambda: claims.demo({row["name"]: row for row in rows_of("demo_arms")}),
    "claims makers": partial(_claims, claims.makers),
    "claims plates": partial(_claims, claims.plates),
    "claims invspread": partial(_claims, claims.invspread),
    "claims supervised": partial(_claims, claims.supervised),
    "claims budget": partial(_claims, claims.budget),
    "claims mechanism": partial(_claims, claims.mechanism),
}
"""Name -> its text."""


def rewritten(text: str) -> str:
    """A page's text with its generated parts made anew."""
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", text)
