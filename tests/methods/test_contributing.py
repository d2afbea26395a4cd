"""The method that CONTRIBUTING.md spells out works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from method_loops import build, random_views

from saga_fast.attention import build_box_table
from saga_fast.loaders import LoaderOptions, WholePlan, open_loader
from saga_fast.methods import METHODS, Method


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": "barlowtwins"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    kind: type[Method] = names["BarlowTwins"]
    monkeypatch.setitem(METHODS, "barlowtwins", kind)
    return kind


def test_it_learns_and_gives_boxes(written: type[Method], images: Path) -> None:
    model = build("barlowtwins", projection_dim=12, off_diagonal=0.1)
    assert type(model) is written
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    views = random_views(16, 1).repeat(1, 2, 1, 1, 1)
    losses = []
    for _ in range(30):
        output = model(views + 0.3 * torch.randn_like(views), torch.arange(16))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.after_step()
        losses.append(output.loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    loader = open_loader("folder", images / "train", WholePlan(size=16), LoaderOptions(threads=1), batch_size=8)
    assert build_box_table(model, loader).found.any()


def test_its_numbers_are_checked(written: type[Method]) -> None:
    with pytest.raises(ValueError, match=r"off_diagonal must be positive, got 0\.0"):
        written.Config(name="barlowtwins", off_diagonal=0.0)  # type: ignore[call-arg]
