"""``saga-fast build-att``: Algorithm 1 as a command."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.channel_weights import Score
from saga_fast.attention.config import Region
from saga_fast.attention.parts import Parts, parts_folder
from saga_fast.checkpoint import open_checkpoint
from saga_fast.cli.options import add_loading, check_outputs, chosen_source, loader_options, user_location, user_path
from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.evaluate.boxes import unhelpful
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders import BadImages, WholePlan, open_loader
from saga_fast.models.compiled_features import Forward
from saga_fast.models.modes import place_model
from saga_fast.models.precision import Precision
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.distributed import broadcast, is_main
from saga_fast.runtime.files import is_stream, lock_file
from saga_fast.runtime.signals import deferring_sigterm
from saga_fast.runtime.terminal import say

log = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "build-att",
        help="compute the box table D^att of a data set with a checkpoint",
        description="One forward pass over the data set, one attention box per image, saved as a safetensors file."
        " Undecodable images are listed next to it, in T.bad_images.txt without T's ending."
        " Options without a stated default have the value of the checkpoint's config.",
    )
    parser.add_argument("--ckpt", type=user_path, required=True, metavar="PT", help="a saga-fast checkpoint")
    parser.add_argument(
        "--data", type=user_location, metavar="SRC", help="images; default: the checkpoint's training images"
    )
    parser.add_argument(
        "--out", type=user_path, default=Path("att.safetensors"), metavar="T", help="default: %(default)s"
    )
    add_loading(parser)
    parser.add_argument("--delta", type=float, metavar="D", help="threshold on the scaled heatmap, in [0, 1)")
    parser.add_argument(
        "--score",
        choices=get_args(Score),
        help="score that is differentiated; activation, background and token, a vision transformer's, need no gradient",
    )
    text = "cells above the threshold that the box is put around: all, or the connected region with the largest sum"
    parser.add_argument("--region", choices=get_args(Region), help=text)
    text = "average the activations with those of the mirrored image: a second forward pass"
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, help=text)
    parser.add_argument("--normalize", choices=get_args(Normalize), help="scaling of the coarse map to [0, 1]")
    parser.add_argument("--precision", choices=get_args(Precision), help="number format of the forward pass")
    text = "compiled: with TorchInductor; auto: compiled on a CPU if the pass is long enough to save time by it"
    parser.add_argument("--forward", choices=get_args(Forward), help=text)
    parser.add_argument("--size", type=int, metavar="S", help="side of the network's input and of the heatmap, pixels")
    parser.add_argument("--max-bad-fraction", type=float, metavar="F", help="allowed fraction of undecodable images")
    text = "resume an interrupted command from its saved rows next to --out; needed for torchrun --max-restarts"
    parser.add_argument("--resume", action="store_true", help=text)
    parser.set_defaults(run=run, distributed=True)


def run(options: argparse.Namespace) -> None:
    """Compute and save the table, and print its figures."""
    checkpoint = open_checkpoint(options.ckpt)
    config = checkpoint.config
    attention_pass = _attention_pass(options, config)
    engine, source = chosen_source(options, config.data)
    bad_list = options.out.with_name(f"{options.out.name.removesuffix('.safetensors')}.bad_images.txt")
    check_outputs([options.out, bad_list], [options.ckpt, source.root, config.data.classes])
    max_fraction = config.data.max_bad_fraction if options.max_bad_fraction is None else options.max_bad_fraction
    bad = BadImages(source, max_fraction=max_fraction)
    loading = replace(loader_options(options), max_pixels=config.data.max_pixels)
    loader = open_loader(engine, source, WholePlan(size=attention_pass.size), loading, bad=bad)
    start = time.perf_counter()
    with _locked_parts(options.out, resume=options.resume) as parts:
        with deferring_sigterm():
            table = build_box_table(
                place_model(
                    checkpoint.model(), choose_device(options.device), channels_last=attention_pass.channels_last
                ),
                loader,
                attention_pass,
                metadata={"checkpoint": checkpoint.sha256, "epoch": str(checkpoint.epoch)},
                parts=parts,
                progress=True,
            )
        rate = len(table) / (time.perf_counter() - start)
        if not is_main():
            return
        table.save(options.out)
        if parts is not None:
            parts.remove()
    if not is_stream(options.out):
        bad.write(bad_list)
    say(
        f"{options.out}: {len(table)} images, found {100 * table.found_fraction:.1f} %,"
        f" mean box area {table.mean_area:.3f}, {rate:.0f} images/s"
    )
    if reason := unhelpful(table.mean_area, None, 0.0):
        say(f"these boxes will hardly help: {reason}")
    if bad:
        say(f"{len(bad)} images cannot be decoded" + ("" if is_stream(options.out) else f", see {bad_list}"))


@contextmanager
def _locked_parts(out: Path, *, resume: bool) -> Iterator[Parts | None]:
    """The parts of the table; None on all ranks if another command is computing the same table, or for a device."""
    parts = Parts(parts_folder(out), resume=resume)
    lock_path = parts.folder.with_suffix(".lock")
    lock = lock_file(lock_path) if is_main() and not is_stream(out) else None
    try:
        if is_main() and lock is None and not is_stream(out):
            log.info("another command computes %s: this one keeps no parts to resume from", out)
        yield parts if broadcast(lock is not None) else None
    finally:
        if lock is not None:
            if not parts.folder.exists():  # a killed or stopped command's lock stays with its parts
                lock_path.unlink(missing_ok=True)
            lock.close()


def _attention_pass(options: argparse.Namespace, config: TrainConfig) -> AttentionPass:
    """The checkpoint's options of the attention pass, replaced by those of the command line."""
    names = ("delta", "score", "region", "mirror", "normalize", "precision", "forward", "size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    try:
        return replace(config.attention_pass, **given)
    except ValueError as error:
        raise SagaError(f"--{error}") from error
