"""probe.pt with another structure or damage: refused at the door in one line that names the file."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.evaluate.probe_file import ProbeFile


def one_line(error: pytest.ExceptionInfo[SagaError], *words: object) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value)


@pytest.fixture
def probe(tmp_path: Path) -> tuple[ProbeFile, dict[str, Any], dict[str, Tensor]]:
    layer = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    history = [{"epoch": 1, "top1": 0.5, "top5": None, "images": 7, "loss": 0.1}]
    content = {"classifier": layer.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1, "history": history}
    file = ProbeFile(tmp_path / "probe.pt", {"seed": 0})
    file.save(content | {"bad": [4]})
    return file, content | {"bad": [4]}, layer.state_dict()


Probe = tuple[ProbeFile, dict[str, Any], dict[str, Tensor]]


def test_a_good_probe_is_read(probe: Probe) -> None:
    file, content, like = probe
    read = file.read(like)
    assert read is not None
    assert (read["epoch"], read["bad"], read["history"]) == (1, [4], content["history"])


def test_a_flipped_bit_of_a_probe(probe: Probe) -> None:
    file, _, like = probe
    data = file.path.read_bytes()
    at = data.index(like["bias"].numpy().tobytes())
    file.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(SagaError, match=r"not a saga-fast probe .*damaged") as error:
        file.read(like)
    one_line(error, file.path)


WRONG_PROBES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no epoch": lambda c: c.pop("epoch"),
    "a negative epoch": lambda c: c.update(epoch=-1),
    "an epoch that is no number": lambda c: c.update(epoch="1"),
    "a classifier that is a list": lambda c: c.update(classifier=[1]),
    "a classifier of another shape": lambda c: c["classifier"].update(weight=torch.zeros(3, 4)),
    "a classifier on meta": lambda c: c["classifier"].update(weight=torch.zeros(3, 5, device="meta")),
    "a sparse classifier": lambda c: c["classifier"].update(weight=torch.zeros(3, 5).to_sparse()),
    "a classifier of integers": lambda c: c["classifier"].update(bias=torch.zeros(3, dtype=torch.int64)),
    "a classifier of NaN": lambda c: c["classifier"].update(bias=torch.full((3,), math.nan)),
    "one tensor more": lambda c: c["classifier"].update(more=torch.zeros(1)),
    "no optimiser": lambda c: c.update(optimizer=None),
    "an optimiser of AdamW": lambda c: c["optimizer"].update(state={0: {"exp_avg": torch.zeros(3, 5)}}),
    "a momentum of another shape": lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2)),
    "two groups": lambda c: c["optimizer"].update(param_groups=c["optimizer"]["param_groups"] * 2),
    "a rate that is text": lambda c: c["optimizer"]["param_groups"][0].update(lr="0.1"),
    "a group without a rate": lambda c: c["optimizer"]["param_groups"][0].pop("lr"),
    "a history of numbers": lambda c: c.update(history=[0.5]),
    "a history of other fields": lambda c: c["history"][0].update(top9=1.0),
    "bad images that are no numbers": lambda c: c.update(bad=["a.jpg"]),
    "no identity": lambda c: c.update(identity=None),
}


@pytest.mark.parametrize("name", WRONG_PROBES)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_a_probe_of_another_structure(probe: Probe, name: str) -> None:
    file, content, like = probe
    changed = copy.deepcopy({**content, "format": "saga-fast/probe", "identity": {"seed": 0}})
    WRONG_PROBES[name](changed)
    torch.save(changed, file.path)
    with pytest.raises(SagaError, match=r"has no valid .*remove it") as error:
        file.read(like)
    one_line(error, file.path)
