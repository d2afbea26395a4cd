"""Checkpoints: written whole or not at all, read without pickle code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from saga_fast.errors import SagaError
from saga_fast.files import replacing
from saga_fast.methods import Method, build_method, num_bank_rows
from saga_fast.train.config import TrainConfig, config_from_dict

FORMAT = "saga-fast/checkpoint"
VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: nested dicts and lists of tensors, numbers and strings.

    Raises:
        OSError: the folder cannot be written or the disk is full; an existing file is as it was.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, **content}, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, tensors on the CPU.

    Raises:
        SagaError: no such file, cut short, another program's file, or one whose reading would run pickle code.
    """
    if not path.is_file():
        raise SagaError(f"no such checkpoint: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SagaError(f"{path} is not a saga-fast checkpoint, or one whose reading would run pickle code") from error
    except Exception as error:  # damaged bytes make torch's reader raise anything from IndexError to RuntimeError
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SagaError(f"cannot read the checkpoint {path}: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SagaError(f"{path} is not a saga-fast checkpoint")
    if content.get("version") != VERSION:
        raise SagaError(f"{path} has checkpoint version {content.get('version')}, this saga-fast reads {VERSION}")
    return content


def checkpoint_config(content: dict[str, Any], path: Path) -> TrainConfig:
    """The config that a checkpoint was trained with."""
    return config_from_dict(content["config"], where=f"{path} (config)")


def load_weights(model: Method, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a model state, every tensor of it.

    Raises:
        SagaError: names or shapes that do not match; the message names the first.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            raise SagaError(f"{path} {'lacks' if name in own else 'has a tensor that the model lacks:'} {name}")
        if own[name].shape != state[name].shape:
            raise SagaError(f"{path}: {name} has shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}")
    model.load_state_dict(state)


def load_model(path: Path | str) -> Method:
    """The model of a checkpoint, in eval mode, on the CPU.

    Args:
        path: ``last.pt`` or ``epoch_NNNN.pt`` of a run.

    Returns:
        A model with ``encoder`` (f), ``projector`` (g) and ``method`` (its name).

    Raises:
        SagaError: see :func:`read_checkpoint`; or weights that do not fit the checkpoint's own config.
    """
    path = Path(path)
    content = read_checkpoint(path)
    config = checkpoint_config(content, path)
    with torch.random.fork_rng(devices=[]):
        # A state without the bank that its method needs is refused below, by the bank's name.
        model = build_method(config.method, config.encoder, num_images=num_bank_rows(content["model"]) or 1)
    load_weights(model, content["model"], path)
    return model.eval()
