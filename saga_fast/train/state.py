"""The checkpoint that a run is resumed from, and the configs that may resume it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from saga_fast.checkpoint import checkpoint_config, read_checkpoint
from saga_fast.config import CheckpointConfig, TrainConfig
from saga_fast.config_file import config_to_dict
from saga_fast.errors import SagaError
from saga_fast.loaders import Source
from saga_fast.runtime.distributed import check_same


def read_state(last: Path, config: TrainConfig, source: Source) -> dict[str, Any]:
    """The content of the checkpoint that a run is resumed from.

    Raises:
        SagaError: it cannot be read, differs between processes, or belongs to another data set or to a config with
            another result.
    """
    state = read_checkpoint(last)
    check_same({"last.pt": position(state)})  # a network file system may show an older one for some seconds
    if differing := differing_results(checkpoint_config(state, last), config):
        raise SagaError(
            f"cannot resume {last.parent} with another {', '.join(differing)}: take its config.yaml or another --out"
        )
    if state["dataset"] != source.fingerprint:
        raise SagaError(
            f"cannot resume {last.parent}: it was trained on data set {state['dataset']}, {source.root} is"
            f" {source.fingerprint}"
        )
    return state


def differing_results(earlier: TrainConfig, now: TrainConfig) -> list[str]:
    """The top-level keys in which two configs differ and which change a run's result."""
    before, after = (_result_config(config) for config in (earlier, now))
    return [key for key in after if after[key] != before[key]]


def position(state: dict[str, Any]) -> str:
    """The position of a checkpoint in its run, in words."""
    done = state["so_far"]["done"] if state.get("so_far") else 0
    return f"epoch {state['epoch']}" + (f" and {done} steps of the next" if done else "")


def _result_config(config: TrainConfig) -> dict[str, Any]:
    """The config without the keys that do not change a run's result; the data set is compared by its fingerprint."""
    data = replace(config.data, train="", val=None, cache=None, threads=None, prefetch=0, max_bad_fraction=1.0)
    return config_to_dict(
        replace(
            config,
            out="",
            device="auto",
            evaluate=None,
            logger=(),
            checkpoint=CheckpointConfig(),
            data=data,
            skip_nonfinite=0,
        )
    )
