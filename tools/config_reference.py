"""Writes docs/config.md, the reference of every configuration key, from the dataclasses and their docstrings."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from saga_fast.config import TrainConfig
from saga_fast.methods import METHODS, MethodConfig

PAGE = Path(__file__).parent.parent / "docs" / "config.md"
HEAD = """# Configuration

<!-- Made by tools/config_reference.py from the dataclasses: `make docs` writes it, a test fails where it is old. -->

An experiment is one YAML file, `saga-fast train --config FILE`; `--set key.sub=value` overrides a value. Unknown keys
are refused. What has no default must be given; a *section* has keys of its own, below.
"""


def reference() -> str:
    """The page."""
    parts = [HEAD, _section("Top level", "", TrainConfig)]
    parts += [_section(f"`{name}`", f"{name}.", kind) for name, kind in _nested(TrainConfig)]
    parts.append("## `method`\n\nOne of these; `name` picks it.\n")
    for name, kind in METHODS.items():
        parts.append(_section(f"`method: {{name: {name}}}`", "method.", kind.Config, level=3))
    return "\n".join(parts)


def _nested(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(dotted key, dataclass) of the fields that hold one, at any depth."""
    for name, hint in get_type_hints(kind).items():
        held = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
        if isinstance(held, type) and held is not MethodConfig:
            yield f"{prefix}{name}", held
            yield from _nested(held, f"{prefix}{name}.")


def _section(title: str, prefix: str, kind: Any, *, level: int = 2) -> str:
    words = _meanings(kind)
    hints = get_type_hints(kind)
    lines = [f"{'#' * level} {title}", "", _first_paragraph(kind), "", "| key | type | default | meaning |"]
    lines.append("|---|---|---|---|")
    for field in fields(kind):
        meaning = words.get(field.name, "")
        cells = (f"`{prefix}{field.name}`", _type(hints[field.name]), _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _first_paragraph(kind: type) -> str:
    text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    return "" if text.startswith(f"{kind.__name__}(") else _markdown(text)


def _meanings(kind: type) -> dict[str, str]:
    """What is said of each field: the string below it, in the class or those it extends, or the Attributes section."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        listed = re.findall(r"^    (\w+): (.+(?:\n      .+)*)", inspect.getdoc(each) or "", re.MULTILINE)
        found |= {name: _markdown(text) for name, text in listed}
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_text(after):
                assert isinstance(after, ast.Expr)
                found[node.target.id] = _markdown(ast.literal_eval(after.value))
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _markdown(text: str) -> str:
    """One line; reStructuredText's roles and double backticks become single ones."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return plain.replace("``", "`")


def _type(hint: Any) -> str:
    """A type as a reader of YAML knows it."""
    if is_dataclass(hint):
        return "section"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if each is NoneType else _type(each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return f"list of {_type(items[0])}" if items[-1] is Ellipsis else f"[{', '.join(map(_type, items))}]"
    names = {str: "text", bool: "true, false", int: "integer", float: "number"}
    return names.get(hint, "mapping")


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return "required"
    if is_dataclass(value):
        return ""
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    sys.stderr.write(f"{PAGE.name} is written\n")
