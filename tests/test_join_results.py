"""Results of several runs of one benchmark are joined row by row."""

from typing import Any

import pytest

from tools.join_results import joined


def document(commit: str, *rows: dict[str, Any], gpu: str = "a GPU") -> dict[str, Any]:
    return {"hardware": {"gpu": gpu}, "commit": commit, "command": f"run {commit}", "rows": list(rows)}


def row(name: str, **facts: Any) -> dict[str, Any]:
    return {"section": "copy", "name": name, **facts}


def test_a_later_run_takes_the_places_of_its_rows() -> None:
    first = document("1", row("a", ratio=1), row("b", ratio=1), row("c", error="killed"), row("a", ratio=3))
    content = joined([first, document("2", row("a", ratio=2)), document("3", row("d", ratio=4), row("e", error="new"))])
    assert content["commit"] == "3" and content["command"] == "run 1 && run 2 && run 3"
    assert content["rows"] == [
        row("b", ratio=1, commit="1"),
        row("a", ratio=2, commit="2"),
        row("d", ratio=4),
        row("e", error="new"),
    ]


def test_runs_on_different_hardware_are_not_joined() -> None:
    with pytest.raises(ValueError, match="another is not a GPU"):
        joined([document("1", gpu="another"), document("2")])
