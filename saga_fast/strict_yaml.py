"""YAML from others: its plain part only, and nothing that takes memory or time out of proportion to its text."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import yaml

MAX_CHARACTERS = 2**20
"""Of a text; our configs have a thousand."""


def read_yaml(text: str) -> Any:
    """What ``text`` holds: mappings, lists, strings, numbers, dates, true, false and null.

    Raises:
        ValueError: not YAML, aliases, more than MAX_CHARACTERS, deeper than Python's stack, numbers that are no dates,
            or such as nothing can be done with: not finite, or of more than 64 bits.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters are more than {MAX_CHARACTERS}")
    try:
        values = yaml.load(text, _Loader)
        _check_numbers(values)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return values


class _Loader(yaml.SafeLoader):
    """YAML without aliases: nested a few times they make a value of gigabytes, and a config has no need of them."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read in a config", None)
        return super().compose_node(parent, index)


def _check_numbers(value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(key)
            _check_numbers(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _check_numbers(item)
    elif isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{value} is not finite")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number has more than 64 bits")
