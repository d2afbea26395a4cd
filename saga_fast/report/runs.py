"""Run folders for the report: config, rows of ``metrics.jsonl`` and results of ``saga-fast eval``."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.runtime.address import public_address
from saga_fast.runtime.files import read_file
from saga_fast.runtime.metrics import read_metrics
from saga_fast.runtime.strict_yaml import read_yaml

# The fields that identify a record among those of its kind.
KEYS = {
    "epoch": ("epoch",),
    "knn": ("epoch", "layer", "k"),
    "online": ("epoch",),
    "rankme": ("epoch",),
    "renewal": ("epoch",),
}

MAX_BYTES = 2**28
"""Of a config or a result of ``saga-fast eval``, which have thousands."""

EVALUATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "knn": (("layer",), ("epoch", "k", "temperature", "top1"), ()),
    "linear": (("probe",), ("epoch", "probe_epochs", "lr", "top1"), ()),
    "pairs": (("name", "views"), ("epoch", "mean", "std"), ("counts", "edges")),
}
"""Protocol -> the words, numbers and lists of numbers of a row that the report uses."""
OPTIONAL_FIGURES = ("top5", "images", "batch_size", "weight_decay", "seed", "iou", "corloc", "area", "drift")

Record = dict[str, Any]
Point = tuple[int, float]  # (finished epochs, value)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run. Records of ``metrics.jsonl`` are sorted by epoch."""

    name: str
    folder: Path
    config: dict[str, Any]
    epochs: tuple[Record, ...]
    knn: tuple[Record, ...]
    online: tuple[Record, ...]
    """Accuracy of the online probe on the validation images."""
    rankme: tuple[Record, ...]
    renewals: tuple[Record, ...]
    evaluations: tuple[Record, ...] = ()
    """Rows of ``saga-fast eval`` in ``RUN/eval/*.json``, in alphabetical order of the files."""

    def setting(self, key: str) -> Any:
        """The config's value at a dotted key, None if any part of the key is missing."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def top1(self, layer: str = "backbone", k: int = 20) -> list[Point]:
        """kNN top-1 in [0, 1] by epoch."""
        return points((r for r in self.knn if r.get("layer") == layer and r.get("k") == k), "top1")


def number(record: Record, key: str) -> float | None:
    """A record's value as a float, None if missing or not a number; NaN and infinities are kept."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def points(records: Iterable[Record], key: str) -> list[Point]:
    """(epoch, value) of the records with a finite value."""
    pairs = ((record["epoch"], number(record, key)) for record in records)
    return [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value)]


def short_path(text: str) -> str:
    """The last two parts of an absolute path, an address without its secrets; other text is returned unchanged.

    Reports are sent to other people, and full paths would show the author's user name.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        if (path := kind(text)).is_absolute():
            return "/".join(["…", *path.parts[1:][-2:]])
    return public_address(text)


def public_config(value: Any) -> Any:
    """The config with all absolute paths shortened, at any depth."""
    if isinstance(value, Mapping):
        return {key: public_config(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public_config(item) for item in value]
    return short_path(value) if isinstance(value, str) else value


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, in the given order.

    A run has the name of its folder; if two folders share a name, ``PARENT/FOLDER``.

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
        raise SagaError(f"{folder} contains no metrics.jsonl: name a run folder of `saga-fast train`")
    records = _records_by_kind(folder)
    return Run(
        name=name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        epochs=records["epoch"],
        knn=records["knn"],
        online=records["online"],
        rankme=records["rankme"],
        renewals=records["renewal"],
        evaluations=tuple(row for path in sorted(folder.glob("eval/*.json")) for row in read_evaluation(path)),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = read_yaml(read_file(path, MAX_BYTES).decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError is a subclass
        reason = " ".join(str(error).split())
        raise SagaError(f"{reason}: {path} is not readable YAML, correct or remove it") from error
    if not isinstance(config, dict | None):
        raise SagaError(f"{type(config).__name__} instead of a mapping in {path}: correct or remove it")
    return config or {}


def read_evaluation(path: Path) -> list[Record]:
    """The rows of a file of ``saga-fast eval --json``.

    Raises:
        SagaError: a file that is not JSON, or not a result of ``saga-fast eval``.
    """
    folder = path.parent
    try:
        content = json.loads(read_file(path, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise SagaError(f"{error}: {path} is not JSON, correct or remove it") from error
    except OSError as error:
        raise SagaError(f"cannot read {path}: {error.strerror}, remove it from {folder}") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(map(_is_evaluation, rows)):
        raise SagaError(f"{path} contains no rows of `saga-fast eval`, or other ones: remove it from {folder}")
    return rows


def _is_evaluation(row: Any) -> bool:
    """Whether a row has the types and the finite numbers that the report relies on."""
    if not isinstance(row, dict) or not isinstance(row.get("protocol"), str):
        return False
    words, figures, lists = EVALUATIONS.get(row["protocol"], ((), (), ()))
    present = [row[key] for key in OPTIONAL_FIGURES if row.get(key) is not None]
    values = [row.get(key) for key in lists]
    return (
        all(isinstance(row.get(key), str) for key in words)
        and all(map(_is_finite, (*(row.get(key) for key in figures), *present)))
        and all(isinstance(each, list) and all(map(_is_finite, each)) for each in values)
        and (row["protocol"] != "pairs" or len(row["edges"]) == len(row["counts"]) + 1)
    )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -1e300 < value < 1e300


def _records_by_kind(folder: Path) -> dict[str, tuple[Record, ...]]:
    """The rows of ``metrics.jsonl`` by kind, sorted by epoch.

    Of rows with equal keys the last one counts: a resumed run writes an epoch's rows again.
    """
    latest: dict[str, dict[tuple[Any, ...], Record]] = {kind: {} for kind in KEYS}
    for row in read_metrics(folder):
        if (keys := KEYS.get(row["kind"])) is not None:
            latest[row["kind"]][tuple(row.get(key) for key in keys)] = row
    return {kind: tuple(sorted(rows.values(), key=lambda row: row["epoch"])) for kind, rows in latest.items()}
