"""One command of a reproduction, and the files that show that it is done."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict
from saga_fast.errors import SagaError
from saga_fast.evaluate.features import LAYERS
from saga_fast.report.runs import Run, read_runs
from saga_fast.runtime.strict_yaml import read_yaml
from saga_fast.train.state import differing_results


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        title: the step in words.
        words: the arguments of ``saga-fast``.
        config: of the checkpoint that is trained or evaluated.
        output: the run folder of a training, the JSON file of an evaluation.
    """

    title: str
    words: tuple[str, ...]
    config: TrainConfig
    output: Path

    @property
    def command(self) -> str:
        """The command for a shell."""
        return shlex.join(("saga-fast", *self.words))

    @property
    def is_training(self) -> bool:
        """Whether the step trains."""
        return self.words[0] == "train"

    def is_done(self) -> bool:
        """Whether the step's output is complete.

        Raises:
            SagaError: a run folder with another config, or an unreadable file.
        """
        if not self.is_training:
            return self.output.is_file()
        self._check_config()
        return self.epochs_left() == 0 and self._is_evaluated()

    def epochs_left(self) -> int:
        """Epochs that the training has yet to do."""
        first = self.config.plain.epochs if "--ckpt" in self.words else 0
        run = self._run()
        done = run.epochs[-1]["epoch"] if run and run.epochs else first
        return max(self.config.plain.epochs + self.config.saga.epochs - int(done), 0)

    def _run(self) -> Run | None:
        return read_runs([self.output])[0] if (self.output / "metrics.jsonl").is_file() else None

    def _is_evaluated(self) -> bool:
        """Whether the kNN evaluation of the last epoch is there: its last row is that of the last layer."""
        run, total = self._run(), self.config.plain.epochs + self.config.saga.epochs
        return self.config.evaluate is None or (
            run is not None and any((row["epoch"], row.get("layer")) == (total, LAYERS[-1]) for row in run.knn)
        )

    def _check_config(self) -> None:
        path = self.output / "config.yaml"
        if not path.is_file():
            return
        try:
            values = read_yaml(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SagaError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise SagaError(f"{path} is not a config: remove {self.output}, or choose another --out")
        if differing := differing_results(config_from_dict(values, where=str(path)), self.config):
            raise SagaError(
                f"{self.output} was trained with another {', '.join(differing)}: choose another --out, or remove it"
            )
