"""``saga-fast import``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from saga_fast.cli.options import add_overrides
from saga_fast.config_file import config_to_dict
from saga_fast.errors import SagaError
from saga_fast.importers import FORMATS
from saga_fast.importers.convert import Imported, import_checkpoint
from saga_fast.loaders import ENGINES, open_source
from saga_fast.runtime.files import check_writable, write_text


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "import",
        help="make another project's checkpoint into saga-fast's",
        description="Make another project's checkpoint into one that build-att, eval and train --ckpt read. No code in"
        " it is run, and every tensor of it is used, on the list of what its project keeps besides, or an error.",
    )
    parser.add_argument("ckpt", type=Path, metavar="CKPT", help="the other project's file")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.pt", help="the checkpoint to write")
    parser.add_argument("--format", choices=FORMATS, help="default: what the file looks like")
    parser.add_argument("--data", metavar="SRC", help="the images it was or will be trained on")
    parser.add_argument("--engine", default="folder", metavar="E", help=f"reads them: one of {', '.join(ENGINES)}")
    parser.add_argument(
        "--fresh-memory", action="store_true", help="leave out its memory bank or queue, start a new one"
    )
    parser.add_argument("--boxes-out", type=Path, metavar="T", help="write ContrastiveCrop's boxes as a box table")
    parser.add_argument("--config-out", type=Path, metavar="YAML", help="write the config, to be edited for train")
    add_overrides(parser, text="set a value of the config, 'method.temperature=0.1' say")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Import, and print what became of the file."""
    outputs = [path for path in (options.out, options.boxes_out, options.config_out) if path is not None]
    for path in outputs:
        if path.is_dir() or path.resolve() == options.ckpt.resolve():
            raise SagaError(f"cannot write to {path}: {'a folder' if path.is_dir() else 'it is the file to import'}")
    if options.boxes_out and options.data is None:
        raise SagaError("--boxes-out needs --data: boxes belong to images")
    source = None if options.data is None else open_source(options.engine, options.data)
    found = import_checkpoint(
        options.ckpt,
        format=options.format,
        source=source,
        overrides=options.overrides,
        fresh_memory=options.fresh_memory,
    )
    if options.boxes_out and found.boxes is None:
        raise SagaError(f"{options.ckpt} holds no boxes, only ContrastiveCrop's checkpoints do")
    for path in outputs:
        check_writable(path)
    found.save(options.out)
    if options.boxes_out and found.boxes is not None:
        found.boxes.save(options.boxes_out)
    if options.config_out:
        write_text(options.config_out, yaml.safe_dump(config_to_dict(found.config), sort_keys=False))
    _report(options, found)


def _report(options: argparse.Namespace, found: Imported) -> None:
    encoder = found.config.encoder
    shape = [encoder.name, f"{encoder.stem} stem", *(f"{key} {value}" for key, value in encoder.args.items())]
    print(f"{options.ckpt}: {found.format} ({FORMATS[found.format].title}), epoch {found.epoch}")
    print(f"  network  {found.config.method.name}, {', '.join(shape)}")
    print(f"  kept     {', '.join(f'{name} ({count} tensors)' for name, count in found.kept.items())}")
    for title, lines in (("dropped", found.dropped), ("fresh", found.fresh), ("note", found.notes)):
        for line in lines:
            print(f"  {title:8s} {line}")
    if options.boxes_out and found.boxes is not None:
        print(f"{options.boxes_out}: {len(found.boxes)} boxes, mean area {found.boxes.mean_area:.3f}")
    print(f"{options.out}: for build-att --ckpt, eval --ckpt and train --ckpt")
