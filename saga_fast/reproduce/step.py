"""One command of a reproduction, and the files that show that it is done."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict
from saga_fast.errors import SagaError
from saga_fast.report.runs import Run, read_runs
from saga_fast.train.state import differing_results


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command.

    Attributes:
        title: the step in words.
        words: the arguments of ``saga-fast``.
        config: of the checkpoint that is trained or evaluated.
        output: the run folder of a training, the JSON file of an evaluation.
        passes: of an evaluation: forward passes over the training images.
    """

    title: str
    words: tuple[str, ...]
    config: TrainConfig
    output: Path
    passes: int = 0

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
        run = self._run()
        if run is None:
            return False
        self._check_config(run)
        return self.epochs_left() == 0 and (self.config.evaluate is None or _is_evaluated(run))

    def epochs_left(self) -> int:
        """Epochs that the training has yet to do."""
        run = self._run()
        first = self.config.plain.epochs if "--ckpt" in self.words else 0
        done = run.epochs[-1]["epoch"] if run and run.epochs else first
        return max(self.config.plain.epochs + self.config.saga.epochs - int(done), 0)

    def _run(self) -> Run | None:
        return read_runs([self.output])[0] if (self.output / "metrics.jsonl").is_file() else None

    def _check_config(self, run: Run) -> None:
        path = self.output / "config.yaml"
        if differing := differing_results(config_from_dict(run.config, where=str(path)), self.config):
            raise SagaError(
                f"{self.output} was trained with another {', '.join(differing)}: choose another --out, or remove it"
            )


def _is_evaluated(run: Run) -> bool:
    """Whether the last epoch has each kNN figure that an earlier evaluation has: a run is evaluated at its start."""
    last = run.epochs[-1]["epoch"] if run.epochs else 0
    figures = {(row.get("layer"), row.get("k")): row["epoch"] for row in run.knn}  # sorted by epoch: the last one stays
    return set(figures.values()) == {last}
