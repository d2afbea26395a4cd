"""``saga-fast train``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from saga_fast.cli.options import (
    add_config,
    add_engine,
    add_overrides,
    chosen_config,
    is_run_file,
    user_path,
    user_text,
)
from saga_fast.config import TrainConfig
from saga_fast.demo.data import make_demo_data
from saga_fast.errors import SagaError
from saga_fast.runtime.distributed import barrier, is_main
from saga_fast.runtime.terminal import say
from saga_fast.train.cycle import train


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "train",
        help="train an encoder: plain epochs, then SAGA epochs",
        description="Train an encoder: plain epochs, then epochs on crops from its own attention, with renewed boxes."
        " Also under torchrun, one process per GPU; torchrun --max-restarts needs --resume.",
    )
    add_config(parser)
    parser.add_argument("--out", type=user_text, metavar="DIR", help="run folder; default: the config's 'out'")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume from the run folder's last.pt; without a last.pt the run starts from the beginning",
    )
    parser.add_argument(
        "--ckpt",
        type=user_path,
        metavar="PT",
        help="start the SAGA phase from this checkpoint's weights, without the plain phase",
    )
    add_engine(parser, default="the config's")
    add_overrides(parser, text="override config values: saga.epochs=20, attention=null (the fine-tuning baseline)")
    parser.set_defaults(run=run, distributed=True)


def run(options: argparse.Namespace) -> None:
    """Train, and print the path of the checkpoint."""
    config = chosen_config(options)
    if options.out:
        config = replace(config, out=options.out)
    _check_inputs(config, options.ckpt)
    if config.data.generate and is_main():
        make_demo_data(Path(config.data.train).parent, config.data.generate)
    barrier()
    last = train(config, resume=options.resume, ckpt=options.ckpt, progress=True)
    if is_main():
        say(str(last))


def _check_inputs(config: TrainConfig, ckpt: Path | None) -> None:
    """Check that the run does not replace a file that it reads.

    Raises:
        SagaError: the start checkpoint, or the provider's checkpoint or table, is a file of the run folder.
    """
    attention = config.attention
    given = [ckpt, *((attention.provider_ckpt, attention.provider_table) if attention else ())]
    for path in given:
        if path is not None and is_run_file(Path(path), Path(config.out)):
            raise SagaError(
                f"{path} is a file of the run folder {config.out}, which training replaces: name another --out"
            )
