"""Of several processes only rank 0 opens the loggers."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from processes import run

from saga_fast.config_file import load_config
from saga_fast.train.cycle import train


class FakeWandb(ModuleType):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="fake")
        self.calls = {"init": 0, "log": 0, "finish": 0}
        self.Image = str

    def init(self, **_: Any) -> "FakeWandb":
        self.calls["init"] += 1
        return self

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, _: Any) -> None:
        self.calls["log"] += 1

    def finish(self, **_: Any) -> None:
        self.calls["finish"] += 1


def calls_of(yaml: str, out: str) -> dict[str, int]:
    fake = FakeWandb()
    sys.modules["wandb"] = fake
    train(load_config(Path(yaml), [f"out={out}", "logger=wandb", "saga.epochs=0"]))
    return fake.calls


def test_rank_0_alone_logs(tiny_yaml: Path, tmp_path: Path) -> None:
    first, second = run(2, calls_of, str(tiny_yaml), str(tmp_path / "run"))
    assert first == {"init": 1, "log": 2 * 3 + 1 + 1, "finish": 1}  # two evaluations, an epoch and its probe's figure
    assert second == {"init": 0, "log": 0, "finish": 0}
