"""Loggers: what a client is told, by a fake one, and by the real ones where they are installed, without a network."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saga_fast.config_file import config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.runtime import loggers
from saga_fast.runtime.loggers import require_loggers
from saga_fast.runtime.metrics import Metrics, read_metrics
from saga_fast.train import cycle
from saga_fast.train.cycle import train

sys.path.append(str(Path(__file__).parent.parent / "train"))
from run_folders import Crash, crash_at

ROOT = Path(__file__).parents[2]


class FakeWandb(ModuleType):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="fake")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.exits: list[int] = []
        self.error: Exception | None = None

    def Image(self, pixels: Any) -> tuple[int, ...]:  # noqa: N802 - the client's name
        return tuple(pixels.shape)

    def init(self, **options: Any) -> "FakeWandb":
        if self.error:
            raise self.error
        self.inits.append(options)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert (name, step_metric) in (("epoch", None), ("*", "epoch"))

    def log(self, figures: dict[str, Any]) -> None:
        if self.error:
            raise self.error
        self.logged.append(figures)

    def finish(self, exit_code: int) -> None:
        self.exits.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_all_figures_and_pictures_of_a_run(wandb: FakeWandb, tiny_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    config = load_config(tiny_yaml, [f"out={out}", "logger=[tensorboard, wandb]"])
    train(config)
    assert len(list(out.glob("events.out.tfevents.*"))) == 1
    (options,) = wandb.inits
    assert (options["project"], options["name"], options["dir"]) == ("saga-fast", "my run", out)
    assert (options["config"], options["resume"]) == (config_to_dict(config), "allow")
    pictures = [figures for figures in wandb.logged if "attention/boxes" in figures]
    assert [(len(each["attention/boxes"]), each["epoch"]) for each in pictures] == [(3, 1), (3, 3)]
    logged = {(name, each["epoch"]): value for each in wandb.logged for name, value in each.items()}
    for row in read_metrics(out):
        if row["kind"] == "knn":
            assert logged.pop((f"knn/{row['layer']}_5", row["epoch"])) == row["top1"]
            continue
        for name, value in row.items():
            if name not in ("kind", "epoch") and isinstance(value, int | float):
                assert logged.pop((f"{row['kind']}/{name}", row["epoch"])) == value
    assert {name for name, _ in logged} == {"epoch", "attention/boxes"}
    assert wandb.exits == [0]


def test_resumed_run_is_the_same_run(
    wandb: FakeWandb, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with another logger in the meantime, which is no other experiment."""
    out = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={out}", "logger=wandb", "saga.epochs=2"])
    with monkeypatch.context() as patch:
        crash_at(patch, cycle, "train_epoch", 2)
        with pytest.raises(Crash):
            train(config)
    assert wandb.exits == [1]
    train(load_config(tiny_yaml, [f"out={out}", "logger=wandb", "saga.epochs=2"]), resume=True)
    first, second = wandb.inits
    assert first["id"] == second["id"]
    assert json.loads((out / "loggers.json").read_text()) == {"wandb": first["id"]}
    assert {figures["epoch"] for figures in wandb.logged} == {0, 1, 2, 3}
    train(load_config(tiny_yaml, [f"out={out}", "logger=[]", "saga.epochs=2"]), resume=True)
    assert len(wandb.inits) == 2


def test_account_and_names_are_the_clients_variables(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROJECT", "NAME", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", f"my {name}")
    Metrics(tmp_path, keep=lambda _: True, loggers=["wandb"]).close(finished=True)
    assert [wandb.inits[0][key] for key in ("project", "name", "id")] == ["my PROJECT", "my NAME", "my RUN_ID"]


def test_client_that_cannot_start_ends_the_run(wandb: FakeWandb, tiny_yaml: Path, tmp_path: Path) -> None:
    wandb.error = RuntimeError("no api key:\nlog in.")
    with pytest.raises(SagaError, match=r"^logger wandb cannot be opened: no api key: log in; see docs/loggers\.md$"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", "logger=wandb"]))
    assert read_metrics(tmp_path / "run") == []


def test_client_that_fails_later_is_a_warning(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(tmp_path, keep=lambda _: True, loggers=["wandb"])
    wandb.error = ConnectionError("no route")
    metrics.add("epoch", 1, loss=2.0)
    wandb.error = None
    metrics.add("epoch", 2, loss=1.0)
    metrics.close(finished=True)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0, 1.0]
    assert wandb.logged == [{"epoch/loss": 1.0, "epoch": 2}]
    (record,) = caplog.records
    assert record.getMessage() == ("logger wandb refused figures of epoch 1: no route; metrics.jsonl has all figures")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_missing_package_is_said_before_anything_is_made(
    name: str, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Callable[..., None]
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    line = f"logger {name} needs a package that is not installed: pip install 'saga-fast[{name}]'"
    out = tmp_path / "run"
    refuses(["train", "--config", tiny_yaml, "--out", out, "--set", f"logger=[tensorboard, {name}]"], line)
    assert not out.exists()


def test_folder_of_a_client_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of W&B leaves a folder ``wandb``, which Python would import."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_spec("wandb") is not None
    with pytest.raises(SagaError, match="pip install"):
        require_loggers(["wandb"])


def test_clients_are_imported_only_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "import_module", pytest.fail)
    metrics = Metrics(tmp_path, keep=lambda _: True, loggers=["tensorboard"])
    metrics.add("epoch", 1, loss=2.0)
    metrics.close(finished=True)
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"metrics", "events"}


@pytest.mark.parametrize(
    ("value", "said"),
    [("[wandb, wandb]", "logger has a name twice"), ("clearml", "logger.*clearml"), ("[tensorboard, 3]", "logger")],
)
def test_names_are_checked(value: str, said: str, tiny_yaml: Path) -> None:
    with pytest.raises(SagaError, match=said):
        load_config(tiny_yaml, [f"logger={value}"])


def test_one_name_is_a_list_of_one(tiny_yaml: Path) -> None:
    assert load_config(tiny_yaml, ["logger=mlflow"]).logger == ("mlflow",)
    assert load_config(tiny_yaml).logger == ("tensorboard",)


@pytest.mark.parametrize("content", ["{", "[1]", '{"wandb": 3}'])
def test_damaged_names_are_named(content: str, wandb: FakeWandb, tmp_path: Path) -> None:
    (tmp_path / "loggers.json").write_text(content)
    with pytest.raises(SagaError, match=f"{tmp_path / 'loggers.json'} is damaged"):
        Metrics(tmp_path, keep=lambda _: True, loggers=["wandb"])
    assert not wandb.inits


# ---------------------------------------------------------------- the real clients, offline

WRITES = """
import sys
from pathlib import Path
import numpy as np
from saga_fast.runtime.metrics import Metrics
name, folder, epoch, finished = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "finished"
config = {"seed": 7, "crop": {"size": 32, "scale": [0.2, 1.0]}, "attention": None}
metrics = Metrics(folder, keep=lambda row: row["epoch"] < epoch, loggers=[name], config=config)
metrics.add("epoch", epoch, loss=0.5 * epoch, phase="plain", online_top1=None)
metrics.add("knn", epoch, layer="backbone", k=20, top1=0.25, images=16)
metrics.add_picture("attention/boxes", epoch, np.full((6, 8, 3), 40 * epoch, np.uint8))
metrics.close(finished=finished)
print("stdout is ours")
"""


def write(name: str, tmp_path: Path, **environment: str) -> Path:
    """Log epoch 1 in a process that ends early, then epochs 1 and 2 as a resumed run does; the run folder."""
    if not loggers._is_installed(name):
        pytest.skip(f"{name} is not installed")
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch, end in ((1, "early"), (1, "early"), (2, "finished")):
        ran = subprocess.run(
            [sys.executable, "-c", WRITES, name, str(folder), str(epoch), end],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert "refused" not in ran.stderr, ran.stderr
        assert ran.stdout == "stdout is ours\n"
    assert [(row["kind"], row["epoch"]) for row in read_metrics(folder)] == [
        (kind, epoch) for epoch in (1, 2) for kind in ("epoch", "knn")
    ]
    return folder


def test_wandb_offline(tmp_path: Path) -> None:
    folder = write("wandb", tmp_path, WANDB_MODE="offline")
    identity = json.loads((folder / "loggers.json").read_text())["wandb"]
    files = sorted((folder / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert files  # runs that began in one second share a folder
    content = b"".join(file.read_bytes() for file in files)
    for word in (b"epoch/loss", b"knn/backbone_20", b"attention/boxes", b"saga-fast", b"crop"):
        assert word in content, word
    assert list((folder / "wandb").rglob("*.png"))


def test_mlflow_in_a_file(tmp_path: Path) -> None:
    write(
        "mlflow", tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}", MLFLOW_DISABLE_TELEMETRY="true"
    )
    base = sqlite3.connect(tmp_path / "mlflow.db")
    assert base.execute("select name from experiments where name = 'saga-fast'").fetchall() == [("saga-fast",)]
    assert base.execute("select name, status from runs").fetchall() == [("run", "FINISHED")]
    losses = base.execute("select distinct step, value from metrics where key = 'epoch/loss' order by step").fetchall()
    assert losses == [(1, 0.5), (2, 1.0)]
    assert base.execute("select count(*) from metrics where key = 'knn/backbone_20'").fetchone()[0] == 3
    params = dict(base.execute("select key, value from params").fetchall())
    assert params == {"seed": "7", "crop.size": "32", "crop.scale": "[0.2, 1.0]", "attention": "None"}
    assert list(tmp_path.rglob("*boxes*.png"))


def test_trackio_in_a_local_database(tmp_path: Path) -> None:
    write("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (path,) = (tmp_path / "trackio").glob("*.db")
    base = sqlite3.connect(path)
    rows = base.execute("select run_id, step, metrics from metrics").fetchall()
    assert len({identity for identity, _, _ in rows}) == 1
    logged = [(step, json.loads(text)) for _, step, text in rows]
    assert {(step, figures.get("epoch/loss")) for step, figures in logged} == {(1, 0.5), (2, 1.0), (1, None), (2, None)}
    assert {step for step, figures in logged if "attention/boxes" in figures} == {1, 2}
    ((config,),) = base.execute("select config from configs").fetchall()
    assert json.loads(config)["crop"] == {"size": 32, "scale": [0.2, 1.0]}
