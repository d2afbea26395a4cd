"""Checkpoints: written whole or not at all, read without pickle code."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict
from saga_fast.errors import SagaError
from saga_fast.methods import Method, build_method, num_bank_rows
from saga_fast.runtime.files import named, read_file, replacing
from saga_fast.runtime.tensors import load_tensors

FORMAT = "saga-fast/checkpoint"
VERSION = 1
MAX_BYTES = 2**37


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: nested dicts and lists of tensors, numbers and strings.

    Raises:
        OSError: the folder cannot be written or the disk is full; an existing file is as it was.
    """
    with replacing(path) as temporary, named(path), temporary.open("wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, **content}, file)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint file, read once: its weights, its config and its hash belong together, also if the file changes."""

    path: Path
    content: dict[str, Any]
    sha256: str
    """Of the bytes that were read, as 64 hexadecimal digits."""

    @property
    def epoch(self) -> int:
        """Finished epochs of the run."""
        epoch = self.content.get("epoch")
        if type(epoch) is not int or epoch < 0:
            raise SagaError(f"{self.path} holds no epoch, got {epoch!r:.40}: saga-fast train did not write it")
        return epoch

    @cached_property
    def config(self) -> TrainConfig:
        """The config of the run. SagaError if there is none, or one that :func:`config_from_dict` refuses."""
        return checkpoint_config(self.content, self.path)

    @property
    def used_boxes(self) -> bool:
        """Whether its run has trained on attention crops; not known of runs whose start had."""
        return self.content.get("box_table") is not None

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The model's state: tensors by name. SagaError if there is none, or something else in it."""
        return _check_state(self.content.get("model"), self.path)

    def model(self) -> Method:
        """A new model with the checkpoint's weights, in eval mode, on the CPU. SagaError as :func:`load_model`."""
        config, state = self.config, self.state
        with torch.random.fork_rng(devices=[]):
            # A state without the bank that its method needs is refused below, by the bank's name.
            model = build_method(config.method, config.encoder, num_images=num_bank_rows(state) or 1)
        load_weights(model, state, self.path)
        return model.eval()


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint file once.

    Raises:
        SagaError: see :func:`read_checkpoint`.
    """
    path = Path(path)
    data = _read(path)
    return Checkpoint(path=path, content=_parse(data, path), sha256=hashlib.sha256(data).hexdigest())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content that :func:`save_checkpoint` wrote, with tensors on the CPU.

    Raises:
        SagaError: no such file, cut short or damaged, another program's file, one whose reading would run pickle code,
            or one that names a box table outside of its run.
    """
    return _parse(_read(path), path)


def _read(path: Path) -> bytes:
    if not path.exists() or path.is_dir():
        raise SagaError(f"no such checkpoint: {path}")
    try:
        return read_file(path, MAX_BYTES)
    except OSError as error:
        raise SagaError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        content = load_tensors(data)
    except pickle.UnpicklingError as error:
        raise SagaError(f"{path} is not a saga-fast checkpoint, or one whose reading would run pickle code") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make torch's reader raise anything from IndexError to RuntimeError
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SagaError(f"cannot read the checkpoint {path}: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SagaError(f"{path} is not a saga-fast checkpoint")
    if content.get("version") != VERSION:
        raise SagaError(f"{path} has checkpoint version {content.get('version')}, this saga-fast reads {VERSION}")
    for name in ("box_table", "box_table_before"):
        if content.get(name) is not None:
            _check_table_name(content[name], path)
    return content


def _check_table_name(entry: Any, path: Path) -> None:
    """Check that a checkpoint names a box table in its run's folder ``att``."""
    name = entry.get("name") if isinstance(entry, dict) else None
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if len(parts) != 2 or parts[0] != "att" or parts[1] == ".." or "\0" in parts[1]:
        raise SagaError(f"{path} names the box table {name!r}: expected att/NAME, a file of the run's own folder")


def checkpoint_config(content: dict[str, Any], path: Path) -> TrainConfig:
    """The config of a checkpoint's training.

    Raises:
        SagaError: the checkpoint holds no config or no model, or one that :func:`config_from_dict` refuses.
    """
    for name in ("config", "model"):
        if not isinstance(content.get(name), dict):
            raise SagaError(f"{path} holds no {name}: saga-fast train did not write it")
    return config_from_dict(content["config"], where=f"{path} (config)")


def load_weights(model: Method, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a model state; names and shapes must match exactly.

    Raises:
        SagaError: names or shapes that do not match; the message names the first.
    """
    expected, state = model.state_dict(), _check_state(state, path)
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise SagaError(f"{path} {'lacks' if name in expected else 'has a tensor that the model lacks:'} {name}")
        if expected[name].shape != state[name].shape:
            raise SagaError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the model {tuple(expected[name].shape)}"
            )
        _check_tensor(name, state[name], expected[name], path)
    model.load_state_dict(state)


def _check_state(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state, if it is a dict of tensors by name, else SagaError."""
    if not isinstance(state, dict):
        raise SagaError(f"{path} holds no model: saga-fast train did not write it")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise SagaError(f"{path}: its model holds {name!r:.40} of type {type(tensor).__name__}, not a tensor")
    return state


def _check_tensor(name: str, tensor: torch.Tensor, expected: torch.Tensor, path: Path) -> None:
    """
    Raises:
        SagaError: not a plain tensor of the expected kind, or one that is not finite.
    """
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.is_floating_point() != expected.is_floating_point():
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise SagaError(f"{path}: {name} is {kind}, not a plain tensor of {expected.dtype}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()) and not name.endswith("log_z"):
        raise SagaError(f"{path}: {name} holds values that are not finite: the run that wrote it has failed")


def load_model(path: Path | str) -> Method:
    """The model of a checkpoint, in eval mode, on the CPU.

    Args:
        path: ``last.pt`` or ``epoch_NNNN.pt`` of a run.

    Returns:
        A model with ``encoder`` (f), ``projector`` (g) and ``method`` (its name).

    Raises:
        SagaError: see :func:`read_checkpoint`; or weights that do not fit the checkpoint's config, or are not finite.
    """
    return open_checkpoint(path).model()
