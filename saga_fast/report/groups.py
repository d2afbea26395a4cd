"""Arms of runs, and groups of runs that differ in their seed only, from the runs' configs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saga_fast.attention.config import AttentionConfig
from saga_fast.report.runs import Run, public_config

PLAIN, FINE_TUNING, SAGA, SUPERVISED, GIVEN_BOXES = (
    "plain",
    "fine-tuning",
    "SAGA",
    "supervised attention",
    "given boxes",
)
UNKNOWN_OPTIONS = f"{SAGA}, unknown options"
UNKNOWN_METHOD = "unknown method"
PROVIDERS = {"self": SAGA, "supervised": SUPERVISED, "table": GIVEN_BOXES}
PAPER = asdict(AttentionConfig())

# The keys of ``attention`` that make an arm another one than the paper's. Not among them: numbers that every study
# tunes (delta, period, share, input_size), and how the pass is computed (precision, forward).
OPTIONS = {
    "views": "{}",
    "score": "{}",
    "region": "{} region",
    "crop": "{} crops",
    "normalize": "normalize {}",
    "renew": "renew {}",
    "mirror": "mirror",
    "min_side": "min_side {}",
}
# Settings of the machine, of the files that are kept and of further figures: the network does not depend on them.
IGNORED = (
    *("seed", "out", "device", "data.threads", "data.prefetch", "checkpoint.keep_every", "checkpoint.every_steps"),
    *("evaluate.online_probe", "evaluate.rankme", "logger"),
)
MAX_DISTINCTIONS = 3  # keys in a group's name
NAMES = {
    "simclr": "SimCLR",
    "moco": "MoCo",
    "mocov2": "MoCo v2",
    "insdis": "InsDis",
    "pirl": "PIRL",
    "cmc": "CMC",
    "invspread": "Inv. Spread",
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that are equal in all but their seed.

    Attributes:
        method: the method's name, in the paper's spelling.
        arm: see :func:`arm`.
        from_scratch: the plain epochs are in the same run, see :func:`is_from_scratch`.
        settings: config values as text by dotted key, without those in IGNORED.
        distinction: the settings in which the group differs from others of the same method and arm, as text.
        runs: one per seed, the first one of each.
        repeated: further runs of the same seeds, which count nowhere.
    """

    method: str
    arm: str
    from_scratch: bool
    settings: Mapping[str, str]
    distinction: str
    runs: tuple[Run, ...]
    repeated: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Method, arm and what tells the group from its like."""
        scratch = ["plain epochs in the same run"] if self.from_scratch else []
        return ", ".join([self.method, self.arm, *scratch, *([self.distinction] if self.distinction else [])])

    @property
    def run_names(self) -> str:
        """The names of the runs that count."""
        return ", ".join(run.name for run in self.runs)


def arm(run: Run) -> str:
    """What a run did after its plain epochs: plain, fine-tuning, SAGA (the paper's reading) or ``SAGA, <options>``.

    Supervised attention and given boxes are arms of their own. The config alone decides; for a run whose config lacks
    ``saga.epochs``, its records do.
    """
    attention, epochs = run.setting("attention"), run.setting("saga.epochs")
    if not isinstance(attention, Mapping):
        if epochs is None and run.renewals:
            return UNKNOWN_OPTIONS
        has_more = any(row.get("phase") == "saga" for row in run.epochs) if epochs is None else epochs
        return FINE_TUNING if has_more else PLAIN
    if epochs == 0:
        return PLAIN
    options = {**PAPER, **attention}
    base = PROVIDERS.get(str(options["provider"]), f"{SAGA}, provider {options['provider']}")
    changed = [text.format(options[key]) for key, text in OPTIONS.items() if options[key] != PAPER[key]]
    return ", ".join([base, *changed])


def is_from_scratch(run: Run) -> bool:
    """Whether a run did its plain epochs and then others, instead of starting from a checkpoint with --ckpt."""
    return arm(run) != PLAIN and bool(run.epochs) and run.epochs[0].get("phase") == "plain"


def missing_settings(run: Run) -> list[str]:
    """The keys that a run's method and arm depend on and that its config lacks."""
    return [key for key in ("method.name", "saga.epochs") if run.setting(key) is None]


def seed(run: Run) -> str:
    """A run's seed as text, "unknown" without one in the config."""
    value = run.setting("seed")
    return "unknown" if value is None else str(value)


def method_name(run: Run) -> str:
    """The method of a run in the paper's spelling."""
    name = run.setting("method.name")
    return UNKNOWN_METHOD if name is None else NAMES.get(str(name), str(name))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The groups of ``runs``, in the order of their first runs.

    A run without a config is a group of its own: nothing shows that it equals another one.
    """
    members: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        settings = frozenset(_settings(run).items())
        alone = "" if run.config else run.name
        members.setdefault((method_name(run), arm(run), is_from_scratch(run), settings, alone), []).append(run)
    return [
        _group(*key[:3], members=equal, alike=[runs[0] for other, runs in members.items() if other[:3] == key[:3]])
        for key, equal in members.items()
    ]


def differing_keys(first: Group, second: Group) -> list[str]:
    """The config keys outside ``attention`` in which two groups differ."""
    return [key for key in _differing([first.settings, second.settings]) if key.split(".")[0] != "attention"]


def _group(method: str, arm: str, from_scratch: bool, *, members: Sequence[Run], alike: Sequence[Run]) -> Group:
    by_seed: dict[str, Run] = {}
    for run in members:
        by_seed.setdefault(seed(run), run)
    counted = tuple(by_seed.values())
    return Group(
        method=method,
        arm=arm,
        from_scratch=from_scratch,
        settings=_settings(members[0]),
        distinction=_distinction(members[0], alike),
        runs=counted,
        repeated=tuple(run for run in members if run not in counted),
    )


def _distinction(run: Run, alike: Sequence[Run]) -> str:
    """The settings of a run that not all of ``alike`` have, as text; its name if they do not tell, or are many."""
    if len(alike) == 1:
        return ""
    shown = [_settings(other, public=True) for other in alike]
    own = _settings(run, public=True)
    keys = _differing(shown)
    if not run.config or shown.count(own) > 1 or len(keys) > MAX_DISTINCTIONS:
        return run.name
    return ", ".join(f"{key} {own.get(key, 'missing')}" for key in keys)


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def _settings(run: Run, *, public: bool = False) -> dict[str, str]:
    """Config values as text by dotted key. Options of ``attention`` that an older config lacks have their defaults."""
    config = dict(run.config)
    if isinstance(config.get("attention"), Mapping):
        config["attention"] = {**PAPER, **config["attention"]}
    return {key: value for key, value in _flat(public_config(config) if public else config) if key not in IGNORED}


def _flat(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
