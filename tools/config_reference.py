"""Writes the reference of all options from the dataclasses and their docstrings.

docs/config.md has the keys of a config file. docs/python.md has the fields of the options that Python calls take, each
table between ``<!-- options: NAME -->`` and ``<!-- end -->``.
"""

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

from saga_fast.attention import AttentionPass
from saga_fast.config import TrainConfig
from saga_fast.loaders import LoaderOptions
from saga_fast.methods import METHODS, MethodConfig

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Configuration

<!-- Made by tools/config_reference.py from the dataclasses: `make docs` writes it, and a test compares. -->

An experiment is one YAML file, `saga-fast train --config FILE`; `--set key.sub=value` overrides a value. Unknown keys
are refused. A key without a default is required; a *section* has keys of its own, below.
"""
OPTIONS = {kind.__name__: kind for kind in (AttentionPass, LoaderOptions)}
PART = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def config_page() -> str:
    """The text of docs/config.md."""
    parts = [HEAD, _section("Top level", "", TrainConfig)]
    parts += [_section(f"`{name}`", f"{name}.", kind) for name, kind in _sections_of(TrainConfig)]
    parts.append("## `method`\n\nThe section of one method, which `name` chooses.\n")
    for name, kind in METHODS.items():
        parts.append(_section(f"`method: {{name: {name}}}`", "method.", kind.Config, level=3))
    return "\n".join(parts)


def python_page(text: str) -> str:
    """The text of docs/python.md with its tables made anew."""
    return PART.sub(lambda part: f"{part[1]}\n{_table('field', '', OPTIONS[part[2]])}\n{part[3]}", text)


def _sections_of(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(dotted key, dataclass) of the fields that hold a dataclass, at any depth."""
    for name, hint in get_type_hints(kind).items():
        section = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
        if isinstance(section, type) and section is not MethodConfig:
            yield f"{prefix}{name}", section
            yield from _sections_of(section, f"{prefix}{name}.")


def _section(title: str, prefix: str, kind: Any, *, level: int = 2) -> str:
    return f"{'#' * level} {title}\n\n{_first_paragraph(kind)}\n\n{_table('key', prefix, kind)}"


def _table(what: str, prefix: str, kind: Any) -> str:
    """A row per field of a dataclass."""
    meanings, hints = _meanings(kind), get_type_hints(kind)
    lines = [f"| {what} | type | default | meaning |", "|---|---|---|---|"]
    for field in fields(kind):
        meaning = meanings.get(field.name, "")
        cells = (f"`{prefix}{field.name}`", _type(hints[field.name]), _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _first_paragraph(kind: type) -> str:
    text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    return "" if text.startswith(f"{kind.__name__}(") else _markdown(text)


def _meanings(kind: type) -> dict[str, str]:
    """Field -> its description: the string below it, in the class or a base class, or the Attributes section's."""
    meanings: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not is_dataclass(each):
            continue
        listed = re.findall(r"^    (\w+): (.+(?:\n      .+)*)", inspect.getdoc(each) or "", re.MULTILINE)
        meanings |= {name: _markdown(text) for name, text in listed}
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_text(after):
                assert isinstance(after, ast.Expr)
                meanings[node.target.id] = _markdown(ast.literal_eval(after.value))
    return meanings


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _markdown(text: str) -> str:
    """One line of Markdown: roles and double backticks become single ones, and pages of docs/ become links."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return re.sub(r"\bdocs/(\w+)\.md\b", r"[\1](\1.md)", plain.replace("``", "`"))


def _type(hint: Any) -> str:
    """The type in the words of YAML."""
    if is_dataclass(hint):
        return "section"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if each is NoneType else _type(each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return f"list of {_type(items[0])}" if items[-1] is Ellipsis else f"[{', '.join(map(_type, items))}]"
    names = {str: "text", bool: "true, false", int: "integer", float: "number", dict: "mapping"}
    return names.get(get_origin(hint) or hint, f"`{hint.__module__}.{hint.__qualname__}`")


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING:
        return "required"
    if is_dataclass(value):
        return ""
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def main() -> None:
    """Write both pages."""
    (DOCS / "config.md").write_text(config_page(), encoding="utf-8")
    page = DOCS / "python.md"
    page.write_text(python_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stderr.write("config.md and python.md are written\n")


if __name__ == "__main__":
    main()
