"""``saga-fast export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.errors import SagaError
from saga_fast.export import Branch, Target, export_state, write_export


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export",
        help="write the encoder in another project's names",
        description="Write the encoder as a state dict of torchvision or timm, without a last layer, or as a checkpoint"
        " of facebookresearch/moco, whose linear-probe and detection code reads it.",
    )
    parser.add_argument("ckpt", type=Path, metavar="CKPT", help="a saga-fast checkpoint")
    parser.add_argument("--to", choices=get_args(Target), required=True, help="whose names")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="F.safetensors, or torch's format")
    parser.add_argument("--with-head", action="store_true", help="the projector too, as fc (moco always has it)")
    parser.add_argument("--branch", choices=get_args(Branch), help="which of CMC's encoders")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Export, and say how to build the network that takes the file."""
    if options.out.is_dir() or options.out.resolve() == options.ckpt.resolve():
        raise SagaError(f"cannot write to {options.out}: it is a folder or the checkpoint itself")
    content = read_checkpoint(options.ckpt)
    config = checkpoint_config(content, options.ckpt)
    state = export_state(load_model(options.ckpt), options.to, with_head=options.with_head, branch=options.branch)
    encoder = config.encoder
    write_export(options.out, state, options.to, arch=encoder.name, epoch=content["epoch"])
    print(f"{options.out}: {len(state)} tensors in the names of {options.to}")
    arguments = "".join(f", {key}={value!r}" for key, value in encoder.args.items())
    print(f"  network  timm.create_model({encoder.name!r}, num_classes=0{arguments})")
    if encoder.stem != "imagenet" or encoder.stem_channels is not None:
        print(
            f"  stem     {encoder.stem}: the receiver must replace its first convolution, see models/encoder.py"
        )
    if options.branch is None:
        print(f"  input    RGB in [0, 1], less {list(encoder.mean)}, over {list(encoder.std)}")
