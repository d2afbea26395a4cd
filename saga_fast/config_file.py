"""Config files: YAML to a checked :class:`~saga_fast.config.TrainConfig`, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.methods import METHODS, MethodConfig
from saga_fast.runtime.address import is_address, public_address, redact
from saga_fast.runtime.strict_yaml import apply_override, read_yaml


def config_from_dict(values: Mapping[str, Any], *, where: str) -> TrainConfig:
    """A checked config from nested mappings.

    Raises:
        SagaError: an unknown key, a wrong type or value; one line that begins with ``where`` and names the key.
    """
    values = _with_home(_without_removed_keys(values, where=where), where=where)
    unknown = list(_unknown_keys(values, TrainConfig))
    if unknown:
        known = [item.name for item in fields(TrainConfig)]
        raise SagaError(f"{where}: unknown key {', '.join(unknown)}; the top-level keys are {', '.join(known)}")
    try:
        config: TrainConfig = TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        raise SagaError(f"{where}: {_one_line(error)}") from error
    except SagaError as error:
        raise SagaError(f"{where}: {error}") from error
    return config


PATHS = (
    "out",
    "data.train",
    "data.val",
    "data.cache",
    "data.classes",
    "attention.provider_ckpt",
    "attention.provider_table",
)
"""Keys whose values are paths."""


def _with_home(values: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    """The values with ``~`` at the beginning of a path replaced by the home folder.

    Raises:
        SagaError: a path that holds a zero byte.
    """
    result = dict(values)
    for path in PATHS:
        section, _, key = path.rpartition(".")
        held = result.get(section) if section else result
        if isinstance(held, Mapping) and isinstance(held.get(key), str):
            if "\0" in held[key]:
                raise SagaError(f"{where}: {path} holds a zero byte: {held[key]!r}")
            expanded = os.path.expanduser(held[key])  # noqa: PTH111 - Path.expanduser fails without a home folder
            result |= {section: {**held, key: expanded}} if section else {key: expanded}
    return result


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested mappings of plain YAML types; addresses of images as :func:`public_address` has them."""
    plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(asdict(config), sort_keys=False))
    for key in ("train", "val"):
        if isinstance(address := plain["data"][key], str) and is_address(address):
            plain["data"][key] = public_address(address)
    return plain


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply ``key.sub=value`` overrides, whose values are YAML.

    Raises:
        SagaError: no such file, not YAML, a malformed override, or what :func:`config_from_dict` refuses.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SagaError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:  # a UnicodeDecodeError, too
        raise SagaError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SagaError(f"{path} is not a config: expected keys and values, got {type(values).__name__}")
    for override in overrides:
        apply_override(values, override)
    return config_from_dict(values, where=str(path))


REMOVED_VALUES = {"renew": ("streaming", "fraction"), "score": ("norm",)}
"""Keys of ``attention`` -> values that version 0.1.0 had."""
REMOVED_KEYS = {"margin": 0.0, "fraction": 0.25, "decay": 0.5}
"""Keys of ``attention`` that version 0.1.0 had -> their defaults, which had no effect and are in its checkpoints."""


def _without_removed_keys(values: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    """
    Raises:
        SagaError: ``attention`` uses what was removed after the study (docs/study.md).
    """
    attention = values.get("attention")
    if not isinstance(attention, Mapping):
        return values
    removed = {key: attention.get(key) for key, values in REMOVED_VALUES.items() if attention.get(key) in values}
    removed |= {key: attention[key] for key, unused in REMOVED_KEYS.items() if attention.get(key, unused) != unused}
    for key, value in removed.items():
        raise SagaError(
            f"{where}: attention.{key}={value} was removed after it lost in docs/study.md: choose another value, or use"
            " saga-fast 0.1.0"
        )
    return {**values, "attention": {key: value for key, value in attention.items() if key not in REMOVED_KEYS}}


def _unknown_keys(given: Mapping[str, Any], kind: type, prefix: str = "") -> Iterator[str]:
    """Keys that are no field of the dataclass ``kind``, or of the dataclasses that its fields hold."""
    hints = get_type_hints(kind)
    for key, value in given.items():
        if key not in hints:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping):
            held = next((t for t in (hints[key], *get_args(hints[key])) if is_dataclass(t)), None)
            if held is MethodConfig:
                name = value.get("name")
                held = METHODS[name].Config if isinstance(name, str) and name in METHODS else None
            if isinstance(held, type):
                yield from _unknown_keys(value, held, f"{prefix}{key}.")


def _one_line(error: ValidationError) -> str:
    """``key: what is wrong, got value`` of the first mistake."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "function-before[_method()]")
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("value_error", "missing") else f", got {redact(repr(first['input']))}"
    return f"{key}: {message}{got}" if key else f"{message}{got}"
