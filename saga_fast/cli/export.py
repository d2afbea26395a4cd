"""``saga-fast export``."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from saga_fast.checkpoint import open_checkpoint
from saga_fast.cli.options import check_outputs, user_path
from saga_fast.export import Branch, Target, export_state, torchvision_name, write_export
from saga_fast.runtime.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export",
        help="write the encoder with the tensor names of another project",
        description="Write the encoder as a state dict of torchvision or timm, without the last layer, or as a"
        " checkpoint for the linear-probe and detection code of facebookresearch/moco.",
    )
    parser.add_argument("ckpt", type=user_path, metavar="CKPT", help="a saga-fast checkpoint")
    parser.add_argument("--to", choices=get_args(Target), required=True, help="the project whose names are used")
    parser.add_argument(
        "--out", type=user_path, required=True, metavar="F", help="F.safetensors, or any other name for torch.save"
    )
    parser.add_argument("--with-head", action="store_true", help="include the projector as fc (always with moco)")
    parser.add_argument("--branch", choices=get_args(Branch), help="the encoder of CMC to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Export, and print how to build the network that loads the file."""
    check_outputs([options.out], [options.ckpt])
    checkpoint = open_checkpoint(options.ckpt)
    state = export_state(checkpoint.model(), options.to, with_head=options.with_head, branch=options.branch)
    encoder = checkpoint.config.encoder
    write_export(options.out, state, options.to, arch=torchvision_name(encoder), epoch=checkpoint.epoch)
    say(f"{options.out}: {len(state)} tensors with the names of {options.to}")
    arguments = "".join(f", {key}={value!r}" for key, value in encoder.args.items())
    say(f"  network  timm.create_model({encoder.name!r}, num_classes=0{arguments})")
    if encoder.stem != "imagenet" or encoder.stem_channels is not None:
        relu = "" if encoder.stem_relu else ", no ReLU"
        say(f"  stem     {encoder.stem}{relu}: replace the first convolution of this network, see models/encoder.py")
    if options.branch is None:
        say(f"  input    RGB in [0, 1], minus {list(encoder.mean)}, divided by {list(encoder.std)}")
