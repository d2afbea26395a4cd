"""Configs: one complete YAML file per experiment, each with a name: ``demo``, ``imagenet/mocov2``."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from saga_fast.errors import SagaError

ROOT = Path(__file__).parent


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the configs in this package, sorted; a name is the path below this folder without ``.yaml``."""
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.yaml"))}


def shipped_config(name: str) -> Path:
    """The file of a shipped config.

    Raises:
        SagaError: no shipped config has this name; the line suggests similar ones.
    """
    shipped = shipped_configs()
    if name not in shipped:
        raise SagaError(f"no shipped config has the name {name}{_suggestion(name)}")
    return shipped[name]


def find_config(path: Path) -> Path:
    """The config file of a path or of a shipped config's name; a file of that name wins.

    Raises:
        SagaError: no such file, and no shipped config of that name; the line suggests similar ones.
    """
    name, shipped = path.as_posix(), shipped_configs()
    if name in shipped and (path.is_dir() or not path.exists()):
        return shipped[name]
    try:
        path.stat()
    except FileNotFoundError as error:
        message = f"cannot read the config {path}: {error.strerror}"
        if path.suffix != ".yaml":
            raise SagaError(f"{message}, and no shipped config has this name{_suggestion(name)}") from error
        same = _same_file_name(name)
        hint = f"; the shipped config of this file name is --config {' or '.join(same)}" if same else ""
        raise SagaError(f"{message}{hint}") from error
    return path


def first_sentence(path: Path) -> str:
    """The first sentence of a config's leading comment."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    sentence = re.match(r".*?(?<!\bInv)\.(?= |$)", comment)  # "Inv. Spread" is a method's name
    return sentence[0] if sentence else comment


def _suggestion(name: str) -> str:
    close = _same_file_name(name)
    if not close:
        stems = get_close_matches(_stem(name), sorted({_stem(each) for each in shipped_configs()}), cutoff=0.7)
        close = [each for each in shipped_configs() if _stem(each) in stems]
    return ": see saga-fast configs" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _same_file_name(name: str) -> list[str]:
    return [each for each in shipped_configs() if _stem(each) == _stem(name)]


def _stem(name: str) -> str:
    return name.removesuffix(".yaml").rpartition("/")[2]
