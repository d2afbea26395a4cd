"""What the tests of the training cycle share: reading run folders, comparing them, and crashing a run."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saga_fast.checkpoint import read_checkpoint
from saga_fast.loaders import BoxTable
from saga_fast.runtime.metrics import read_metrics

MOCO = "method={name: mocov2, temperature: 0.2, projection_dim: 12, queue_size: 20, momentum: 0.9}"  # 20 % 8 != 0
DINO = (
    "method={name: dino, prototypes: 24, projection_dim: 12, hidden_dim: 16, momentum: 0.9, teacher_temperature: 0.07,"
    " warmup_epochs: 3, local_size: 12, local_views: 2}"
)
TIMING = ("images_per_second", "data_wait", "seconds")


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor, number and string of nested dicts and lists, with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{prefix}/{key}")
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from leaves(item, f"{prefix}/{at}")
    else:
        yield prefix, value


def figures(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock measured."""
    return [{key: value for key, value in row.items() if key not in TIMING} for row in read_metrics(run)]


def assert_same_run(run: Path, reference: Path) -> None:
    """The figures, last.pt bit for bit, and the box tables' columns."""
    assert figures(run) == figures(reference)  # first, because it tells in which epoch they part
    own, expected = (read_checkpoint(folder / "last.pt") for folder in (run, reference))
    for content in (own, expected):
        del content["config"]["out"]
        for entry in (content["box_table"], content.get("box_table_before")):
            if entry:
                del entry["sha256"]  # of a file that names the hash of a last.pt that names the run folder
    own_leaves, expected_leaves = dict(leaves(own)), dict(leaves(expected))
    assert own_leaves.keys() == expected_leaves.keys()
    assert sum(isinstance(value, Tensor) for value in expected_leaves.values()) > 100
    for name, value in expected_leaves.items():
        if isinstance(value, Tensor):
            assert own_leaves[name].dtype == value.dtype, name
            assert torch.equal(own_leaves[name], value), f"{name} by {(own_leaves[name] - value).abs().max()}"
        else:
            assert own_leaves[name] == value, name
    tables = sorted(path.name for path in (reference / "att").glob("*"))
    assert sorted(path.name for path in (run / "att").glob("*")) == tables
    for name in tables:
        table, other = BoxTable.open(run / "att" / name), BoxTable.open(reference / "att" / name)
        for column in ("boxes", "found", "pseudo_label", "score"):
            np.testing.assert_array_equal(getattr(table, column), getattr(other, column))


def spoiled_copy(images: Path, data: Path) -> Path:
    """``data``, a copy of the training images of which those of index 4, 31 and 40 are cut short."""
    shutil.copytree(images / "train", data)
    for name in ("cat/004.jpg", "dog/011.jpg", "dog/020.jpg"):
        (data / name).write_bytes((data / name).read_bytes()[:80])
    return data


def rows_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run) if row["kind"] == kind]


class Crash(BaseException):
    """Ends a run the way a signal does: nothing catches it."""


def crash_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, *, after: bool = False) -> None:
    """Let ``module.name`` raise at its ``call``-th call, before or after doing its work."""
    real, calls = getattr(module, name), 0

    def crash(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Crash
        result = real(*arguments, **options)
        if calls == call:
            raise Crash
        return result

    monkeypatch.setattr(module, name, crash)
