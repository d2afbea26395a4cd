"""A run folder as the report sees it: its config and the records of its ``metrics.jsonl``."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.strict_yaml import read_yaml

# What tells two records of a kind apart.
KEYS = {"epoch": ("epoch",), "knn": ("epoch", "layer", "k"), "renewal": ("epoch",)}

Record = dict[str, Any]
Point = tuple[int, float]  # (finished epochs, value)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; every tuple of records is sorted by epoch."""

    name: str
    folder: Path
    config: dict[str, Any]
    epochs: tuple[Record, ...]
    knn: tuple[Record, ...]
    renewals: tuple[Record, ...]
    evaluations: tuple[Record, ...] = ()
    """Rows of ``saga-fast eval`` that lie in the run folder, in the files' order."""

    @property
    def is_saga(self) -> bool:
        """Whether the run crops with attention boxes."""
        return bool(self.setting("attention") or self.renewals)

    def setting(self, key: str) -> Any:
        """The config's value under a dotted key, None where any part of it is missing."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def top1(self, layer: str = "backbone", k: int = 20) -> list[Point]:
        """kNN top-1 in [0, 1] by epoch."""
        return points((r for r in self.knn if r.get("layer") == layer and r.get("k") == k), "top1")


def number(record: Record, key: str) -> float | None:
    """A record's value as a float, None where it is absent or not a number; NaN and infinities are kept."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def points(records: Iterable[Record], key: str) -> list[Point]:
    """(epoch, value) of the records whose value is a finite number."""
    pairs = ((record["epoch"], number(record, key)) for record in records)
    return [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value)]


def short_path(text: str) -> str:
    """An absolute path's last two parts: a report is passed on, the names of its author's folders are not."""
    for kind in (PurePosixPath, PureWindowsPath):
        if (path := kind(text)).is_absolute():
            return "/".join(["…", *path.parts[1:][-2:]])
    return text


def public_config(value: Any) -> Any:
    """The config with every absolute path shortened, at any depth."""
    if isinstance(value, Mapping):
        return {key: public_config(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public_config(item) for item in value]
    return short_path(value) if isinstance(value, str) else value


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders in the given order.

    A run is called after its folder; where two folders share a name, after its parent and its folder.

    Raises:
        SagaError: no folder given, a folder without ``metrics.jsonl``, or a file in it that cannot be read.
    """
    if not folders:
        raise SagaError("no run to report on: name at least one run folder")
    paths = [Path(folder).resolve() for folder in folders]
    times_used = Counter(path.name for path in paths)
    names = [path.name if times_used[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise SagaError(f"{folder} holds no metrics.jsonl: name a run folder that `saga-fast train` has written")
    records = _read_metrics(metrics)
    return Run(
        name=name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        epochs=records["epoch"],
        knn=records["knn"],
        renewals=records["renewal"],
        evaluations=_read_evaluations(folder / "eval"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError, too
        raise SagaError(f"{path} is not readable YAML: mend or remove it ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict | None):
        raise SagaError(f"{path} holds a {type(config).__name__}, not a mapping: mend or remove it")
    return config or {}


def _read_evaluations(folder: Path) -> tuple[Record, ...]:
    """The rows of every JSON file in ``folder``, files in alphabetical order; none where there is no folder.

    Raises:
        SagaError: a file that is not JSON, or not one of ``saga-fast eval``.
    """
    rows: list[Record] = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SagaError(f"{path} is not JSON: mend or remove it ({error})") from error
        found = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(row, dict) and "protocol" in row for row in found):
            raise SagaError(f"{path} holds no rows of `saga-fast eval`: remove it from {folder}")
        rows += found
    return tuple(rows)


def _read_metrics(path: Path) -> dict[str, tuple[Record, ...]]:
    """Records by kind. A resumed run writes some epochs twice: the later line counts."""
    found: dict[str, dict[tuple[Any, ...], Record]] = {kind: {} for kind in KEYS}
    lines = path.read_text(encoding="utf-8").split("\n")
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if at == len(lines):  # no newline at the end: a run that was killed, or is writing right now
                continue
            raise SagaError(f"{path} line {at} is not JSON: {line[:60]!r}; remove that line") from error
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind not in KEYS:
            continue
        if not isinstance(record.get("epoch"), int):
            raise SagaError(f"{path} line {at}: epoch is {record.get('epoch')!r}, not an integer; remove that line")
        found[kind][tuple(record.get(key) for key in KEYS[kind])] = record
    return {kind: tuple(sorted(rows.values(), key=lambda row: row["epoch"])) for kind, rows in found.items()}
