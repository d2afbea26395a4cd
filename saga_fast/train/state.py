"""What a checkpoint of a run holds, and which runs may go on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from saga_fast.checkpoint import checkpoint_config, read_checkpoint
from saga_fast.distributed import broadcast_tensors, check_same
from saga_fast.errors import SagaError
from saga_fast.loaders import Source
from saga_fast.methods import Method
from saga_fast.train.config import CheckpointConfig, TrainConfig, config_to_dict


def training_state(
    model: Method, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, device: torch.device
) -> dict[str, Any]:
    """What every step changes. It is the same in every process, but for what :func:`share_statistics` says."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "rng_cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def restore_training_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, device: torch.device
) -> None:
    """The counterpart for all but the model."""
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])
    if state["rng_cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["rng_cuda"][0], device)


def share_statistics(model: Method) -> None:
    """Give every process the running batch-norm statistics of rank 0, which are the run's and go into checkpoints.

    They are no part of training, whose steps normalise by the batch, and streaming attention shares those that it looks
    at by itself; and since rank 0's own stay as they are, it does not matter how often this is done.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    broadcast_tensors([buffer for norm in norms for buffer in norm.buffers()])


def read_state(last: Path, config: TrainConfig, source: Source) -> dict[str, Any]:
    """The checkpoint that a run goes on from.

    Raises:
        SagaError: it cannot be read, is not the same for all processes, or belongs to a config whose result is another,
            or to another data set.
    """
    state = read_checkpoint(last)
    check_same({"last.pt": position(state)})  # a network file system may show an older one for some seconds
    earlier, now = (_what_matters(each) for each in (checkpoint_config(state, last), config))
    differing = [key for key in now if now[key] != earlier[key]]
    if differing:
        raise SagaError(
            f"cannot resume {last.parent} with another {', '.join(differing)}: take its config.yaml or another --out"
        )
    if state["dataset"] != source.fingerprint:
        raise SagaError(
            f"cannot resume {last.parent}: it was trained on data set {state['dataset']}, {source.root} is"
            f" {source.fingerprint}"
        )
    return state


def position(state: dict[str, Any]) -> str:
    """How far a checkpoint is, in words."""
    done = state["so_far"]["done"] if state.get("so_far") else 0
    return f"epoch {state['epoch']}" + (f" and {done} steps of the next" if done else "")


def _what_matters(config: TrainConfig) -> dict[str, Any]:
    """The config without what leaves a run's result as it is; the data set itself is compared by its fingerprint."""
    free = replace(config.data, train="", val=None, threads=None, prefetch=0, max_bad_fraction=1.0)
    return config_to_dict(
        replace(
            config,
            out="",
            device="auto",
            evaluate=None,
            checkpoint=CheckpointConfig(),
            data=free,
            skip_nonfinite=0,
        )
    )
