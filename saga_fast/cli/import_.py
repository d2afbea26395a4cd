"""``saga-fast import``."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from saga_fast.cli.options import add_overrides, check_outputs, user_location, user_path
from saga_fast.config_file import config_to_dict
from saga_fast.errors import SagaError
from saga_fast.importers import FORMATS
from saga_fast.importers.convert import Imported, import_checkpoint
from saga_fast.loaders import ENGINES, open_source
from saga_fast.runtime.files import write_text
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "import",
        help="convert another project's checkpoint",
        description="Convert another project's checkpoint for build-att, eval and train --ckpt. No pickled code is run."
        " Each tensor in the file is either used, or on the list of tensors that the format may drop, or an error.",
    )
    parser.add_argument("ckpt", type=user_path, metavar="CKPT", help="the file to convert")
    parser.add_argument("--out", type=user_path, required=True, metavar="OUT.pt", help="the checkpoint to write")
    parser.add_argument("--format", choices=FORMATS, help="default: detected")
    parser.add_argument(
        "--data", type=user_location, metavar="SRC", help="the images that it was or will be trained on"
    )
    parser.add_argument(
        "--engine", default="folder", metavar="E", help=f"loader engine of --data: {', '.join(ENGINES)}"
    )
    parser.add_argument("--fresh-memory", action="store_true", help="start with a new memory bank or queue")
    parser.add_argument("--boxes-out", type=user_path, metavar="T", help="write ContrastiveCrop's boxes as a box table")
    parser.add_argument("--config-out", type=user_path, metavar="YAML", help="write a config for train")
    add_overrides(parser, text="override config values, for example method.temperature=0.1")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Import, and print which tensors were kept, dropped and started fresh."""
    check_outputs([options.out, options.boxes_out, options.config_out], [options.ckpt, options.data])
    if options.boxes_out and options.data is None:
        raise SagaError("--boxes-out needs --data: a box table belongs to a data set")
    source = None if options.data is None else open_source(options.engine, options.data)
    imported = import_checkpoint(
        options.ckpt,
        format=options.format,
        source=source,
        overrides=options.overrides,
        fresh_memory=options.fresh_memory,
    )
    if options.boxes_out and imported.boxes is None:
        raise SagaError(f"{options.ckpt} contains no boxes: --boxes-out is for checkpoints of ContrastiveCrop")
    imported.save(options.out)
    if options.boxes_out and imported.boxes is not None:
        imported.boxes.save(options.boxes_out)
    if options.config_out:
        write_text(options.config_out, yaml.safe_dump(config_to_dict(imported.config), sort_keys=False))
    _print_summary(options, imported)


def _print_summary(options: argparse.Namespace, imported: Imported) -> None:
    encoder = imported.config.encoder
    shape = [encoder.name, f"{encoder.stem} stem", *(f"{key} {value}" for key, value in encoder.args.items())]
    say(f"{options.ckpt}: {imported.format} ({FORMATS[imported.format].title}), epoch {imported.epoch}")
    say(f"  network  {imported.config.method.name}, {', '.join(shape)}")
    say(f"  kept     {', '.join(f'{name} ({count} tensors)' for name, count in imported.kept.items())}")
    for title, lines in (("dropped", imported.dropped), ("fresh", imported.fresh), ("note", imported.notes)):
        for line in lines:
            say(f"  {title:8s} {line}")
    if options.boxes_out and imported.boxes is not None:
        say(f"{options.boxes_out}: {len(imported.boxes)} boxes, mean area {imported.boxes.mean_area:.3f}")
    say(f"{options.out}: for build-att --ckpt, eval --ckpt and train --ckpt")
