"""YAML from untrusted files: plain values only, and nothing whose memory or time is out of proportion to its text."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import yaml

from saga_fast.errors import SagaError

MAX_CHARACTERS = 2**20
"""Of a text; our configs have a thousand."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text: mappings, lists, strings, numbers, dates, true, false and null.

    Raises:
        ValueError: not YAML, aliases, more than MAX_CHARACTERS, nested deeper than Python's stack, invalid dates, or
            numbers that are not finite or have more than 64 bits.
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


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set ``key.sub=value`` in nested mappings, in place; the value is YAML, of which no character is dropped.

    Raises:
        SagaError: not of that form, a key below a value, or a comment behind a list, a mapping or quotes.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SagaError(f"an override is key=value, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise SagaError(f"cannot set {key!r}: {parent!r} holds a value, not keys")
    try:
        values[last] = _read_whole(text)
    except ValueError as error:
        raise SagaError(f"the value of {override!r} is not YAML: {' '.join(str(error).split())}") from error


def _read_whole(text: str) -> Any:
    """The value of a YAML text, or the text itself if YAML would read a part of it as a comment.

    Raises:
        ValueError: as :func:`read_yaml`; or a comment in or behind a list, a mapping or quotes.
    """
    value = read_yaml(text)
    node = yaml.compose(text, _Loader)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None):
        read = "" if node is None else text[node.start_mark.index : node.end_mark.index]
        is_cut = read != text.strip() or (isinstance(value, str) and value != text)
        return text if is_cut else value
    if "#" in _without_scalars(text, node):
        raise ValueError("it holds a comment: remove that, or put quotes around the text")
    return value


def _without_scalars(text: str, node: yaml.Node) -> str:
    """The text without the keys and values of a node: brackets, commas and comments."""
    begin, nodes, remaining = 0, [node], ""
    while nodes:
        first = nodes.pop()
        if isinstance(first, yaml.ScalarNode):
            remaining += text[begin : first.start_mark.index]
            begin = first.end_mark.index
        else:
            children = (
                first.value if isinstance(first, yaml.SequenceNode) else [each for pair in first.value for each in pair]
            )
            nodes += reversed(children)
    return remaining + text[begin:]


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
