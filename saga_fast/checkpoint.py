"""Checkpoints: written whole or not at all, read without pickle code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict
from saga_fast.errors import SagaError
from saga_fast.methods import Method, build_method, num_bank_rows
from saga_fast.runtime.files import replacing

FORMAT = "saga-fast/checkpoint"
VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: nested dicts and lists of tensors, numbers and strings.

    Raises:
        OSError: the folder cannot be written or the disk is full; an existing file is as it was.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
        except RuntimeError as error:  # which torch makes of whatever the file raised
            if isinstance(error.__context__, OSError):
                raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
            raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content that :func:`save_checkpoint` wrote, with tensors on the CPU.

    Raises:
        SagaError: no such file, cut short or damaged, another program's file, one whose reading would run pickle code,
            or one that names a box table outside of its run.
    """
    if not path.is_file():
        raise SagaError(f"no such checkpoint: {path}")
    try:
        _check_crc(path)
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
    for name in ("box_table", "box_table_before"):
        if content.get(name) is not None:
            _check_table_name(content[name], path)
    return content


def _check_crc(path: Path) -> None:
    """Compare each record with its checksum: ``torch.load`` does not, and reads a flipped bit as a weight.

    This takes 0.4 s per GiB. Files in torch's older format, which saga-fast never wrote, have no checksums.

    Raises:
        zipfile.BadZipFile: a damaged record.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as records:
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
            raise zipfile.BadZipFile("it is compressed, which checkpoints are not")
        damaged = records.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"its record {damaged} is damaged")


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
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise SagaError(f"{path} {'lacks' if name in expected else 'has a tensor that the model lacks:'} {name}")
        if expected[name].shape != state[name].shape:
            raise SagaError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the model {tuple(expected[name].shape)}"
            )
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
