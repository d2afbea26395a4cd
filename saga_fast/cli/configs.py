"""``saga-fast configs``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saga_fast.cli.options import user_path
from saga_fast.configs import first_sentence, shipped_config, shipped_configs
from saga_fast.errors import SagaError
from saga_fast.runtime.files import write_text
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "configs",
        help="list, print or copy the configs that come with saga-fast",
        description="List the configs that come with saga-fast, print one as YAML, or copy them. Each command with a"
        " --config takes their names: --config demo.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the config to print; default: list all")
    text = "write NAME, or all configs, into this folder instead, as NAME.yaml; a file that differs is not replaced"
    parser.add_argument("--copy", type=user_path, metavar="DIR", help=text)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """List, print or copy."""
    name: str | None = options.name
    configs = shipped_configs() if name is None else {name: shipped_config(name)}
    if options.copy is not None:
        _copy(configs, options.copy)
    elif name is not None:
        say(*configs[name].read_text(encoding="utf-8").splitlines())
    else:
        width = max(map(len, configs))
        say(*(f"{each:{width}}  {first_sentence(path)}" for each, path in configs.items()))


def _copy(configs: Mapping[str, Path], folder: Path) -> None:
    """Write configs into a folder, all or none, and print their paths.

    Raises:
        SagaError: one of the paths exists and is another file.
    """
    texts = {folder / f"{name}.yaml": path.read_text(encoding="utf-8") for name, path in configs.items()}
    missing = [target for target in texts if not target.exists()]
    for target in texts.keys() - missing:
        if not target.is_file() or target.read_bytes() != texts[target].encode():
            raise SagaError(f"{target} exists and is not the shipped config: remove it or name another --copy DIR")
    for target in missing:
        write_text(target, texts[target])
    say(*map(str, texts))
