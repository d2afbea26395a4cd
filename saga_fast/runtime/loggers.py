"""Loggers: where a run's figures and pictures go besides metrics.jsonl, which stays the record.

Each is a service's own client, imported only where a config names it. Accounts, servers and offline modes are set by
the clients' own environment variables (docs/loggers.md).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from saga_fast.errors import SagaError
from saga_fast.runtime.files import named, read_file, write_text

log = logging.getLogger(__name__)

LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = "saga-fast"
"""Default project or experiment."""
FILE = "loggers.json"
"""The runs' names at the services, in the run folder: a resumed run goes on with them."""
MAX_BYTES = 2**20

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run as its loggers know it.

    Attributes:
        folder: the run folder.
        config: nested mappings of plain YAML types.
        next_epoch: figures of this and later epochs are (again) to come.
    """

    folder: Path
    config: Mapping[str, Any]
    next_epoch: int


class Logger(Protocol):
    """Takes a run's figures."""

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Log figures by name, at the number of finished epochs."""

    def log_picture(self, name: str, pixels: Pixels, epoch: int) -> None:
        """Log a picture (H, W, 3) uint8."""

    def close(self, *, finished: bool) -> None:
        """Send what is pending. ``finished`` is False for a run that ended early and may be resumed."""


def require_loggers(names: Sequence[LoggerName]) -> None:
    """Check that the loggers' packages are installed.

    Raises:
        SagaError: one is not.
    """
    for name in names:
        if name in CLIENTS and not _is_installed(name):
            raise SagaError(f"logger {name} needs a package that is not installed: pip install 'saga-fast[{name}]'")


def _is_installed(name: str) -> bool:
    """Whether a package can be imported; a folder of that name, as wandb writes one, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def open_loggers(names: Sequence[LoggerName], run: LoggedRun) -> list[Logger]:
    """Open the loggers of a run, new ones or those of the resumed run.

    Raises:
        SagaError: a service refuses, for example without an account; the line has its reason.
    """
    return [_TensorBoard(run) if name == "tensorboard" else _Service(name, run) for name in names]


class _TensorBoard:
    """TensorBoard's event files in the run folder."""

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the config, which every command reads, needs no TensorBoard

        self._folder = run.folder
        try:
            self._writer = SummaryWriter(str(run.folder), purge_step=run.next_epoch)
        except UnicodeEncodeError as error:
            raise SagaError(
                f"logger tensorboard cannot write into {str(run.folder)!r}, whose name is not UTF-8: choose another"
                " --out, or logger=[]"
            ) from error

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See :class:`Logger`."""
        with named(self._folder):
            for name, value in figures.items():
                self._writer.add_scalar(name, value, epoch)

    def log_picture(self, name: str, pixels: Pixels, epoch: int) -> None:
        """See :class:`Logger`."""
        with named(self._folder):
            self._writer.add_image(name, pixels, epoch, dataformats="HWC")

    def close(self, *, finished: bool) -> None:  # noqa: ARG002 - the files do not tell
        """See :class:`Logger`."""
        with named(self._folder):
            self._writer.close()


class _Wandb:
    """A run of Weights & Biases. Offline runs of one id are one run after ``wandb sync``."""

    def __init__(self, run: LoggedRun) -> None:
        wandb: Any = import_module("wandb")
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", _name(run.folder)),
            id=_stored(run.folder, "wandb", lambda: os.environ.get("WANDB_RUN_ID", _random())),
            resume="allow",
            dir=run.folder,
            config=dict(run.config),
        )
        # A step of W&B must not go back, and a resumed run repeats epochs: so the epoch is a figure, and the axis.
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See :class:`Logger`."""
        self._run.log({**figures, "epoch": epoch})

    def log_picture(self, name: str, pixels: Pixels, epoch: int) -> None:
        """See :class:`Logger`."""
        self._run.log({name: self._image(pixels), "epoch": epoch})

    def close(self, *, finished: bool) -> None:
        """See :class:`Logger`."""
        self._run.finish(exit_code=0 if finished else 1)


class _Mlflow:
    """A run of an MLflow experiment."""

    def __init__(self, run: LoggedRun) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self._id = _stored(run.folder, "mlflow", lambda: self._create(run))
        self._client.update_run(self._id, status="RUNNING")

    def _create(self, run: LoggedRun) -> str:
        """A new run's id, in the experiment of MLFLOW_EXPERIMENT_NAME or PROJECT; its parameters are the config."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        info = self._client.create_run(number, run_name=_name(run.folder)).info
        params = [self._entities.Param(key, str(value)) for key, value in _flat(run.config)]
        for first in range(0, len(params), 100):  # the service's limit
            self._client.log_batch(info.run_id, params=params[first : first + 100])
        return str(info.run_id)

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See :class:`Logger`."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, epoch) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_picture(self, name: str, pixels: Pixels, epoch: int) -> None:
        """See :class:`Logger`."""
        self._client.log_image(self._id, pixels, key=name, step=epoch)

    def close(self, *, finished: bool) -> None:
        """See :class:`Logger`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


class _Trackio:
    """A run of Trackio: in a local database, or in the Space of TRACKIO_SPACE_ID."""

    def __init__(self, run: LoggedRun) -> None:
        self._trackio: Any = import_module("trackio")
        name = _stored(run.folder, "trackio", lambda: f"{_name(run.folder)}-{_random()}")
        with redirect_stdout(sys.stderr):  # our stdout has the path of the checkpoint alone
            self._run = self._trackio.init(project=PROJECT, name=name, resume="allow", config=dict(run.config))

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See :class:`Logger`."""
        self._run.log(dict(figures), step=epoch)

    def log_picture(self, name: str, pixels: Pixels, epoch: int) -> None:
        """See :class:`Logger`."""
        self._run.log({name: self._trackio.Image(pixels)}, step=epoch)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002 - it keeps no state of a run
        """See :class:`Logger`."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()  # not the run's own, which would be called again when the process ends


CLIENTS: Mapping[str, Callable[[LoggedRun], Logger]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


class _Service:
    """A client whose failures are warnings, once it is open: a run of days outlives a server that does not answer."""

    def __init__(self, name: LoggerName, run: LoggedRun) -> None:
        self._name = name
        try:
            self._client = CLIENTS[name](run)
        except SagaError:
            raise
        except Exception as error:  # each client has errors of its own
            raise SagaError(f"logger {name} cannot be opened: {_reason(error)}; see docs/loggers.md") from error

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """See :class:`Logger`."""
        self._attempt(lambda: self._client.log(figures, epoch), f"figures of epoch {epoch}")

    def log_picture(self, name: str, pixels: Pixels, epoch: int) -> None:
        """See :class:`Logger`."""
        self._attempt(lambda: self._client.log_picture(name, pixels, epoch), f"{name} of epoch {epoch}")

    def close(self, *, finished: bool) -> None:
        """See :class:`Logger`."""
        self._attempt(lambda: self._client.close(finished=finished), "the end of the run")

    def _attempt(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except Exception as error:
            log.warning("logger %s refused %s: %s; metrics.jsonl has all figures", self._name, what, _reason(error))


def _stored(folder: Path, name: LoggerName, make: Callable[[], str]) -> str:
    """The name or number of a run at a service, from FILE in the run folder, where a new one is added.

    Raises:
        SagaError: a file that is damaged.
    """
    path = folder / FILE
    try:
        names = json.loads(read_file(path, MAX_BYTES)) if path.exists() else {}
        if not isinstance(names, dict) or not isinstance(names.get(name, ""), str):
            raise ValueError("expected a mapping of names")
    except ValueError as error:
        raise SagaError(f"{path} is damaged ({error}): remove it, and the run gets new ones at its loggers") from error
    if name not in names:
        names[name] = make()
        write_text(path, json.dumps(names) + "\n")
    return str(names[name])


def _name(folder: Path) -> str:
    """A run's name at a service: its folder's."""
    return folder.resolve().name


def _random() -> str:
    return uuid.uuid4().hex[:8]


def _reason(error: Exception) -> str:
    """An error as one line."""
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys and values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
