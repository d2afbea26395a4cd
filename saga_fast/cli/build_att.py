"""``saga-fast build-att``: Algorithm 1 as a command."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.channel_weights import Score
from saga_fast.attention.parts import Parts, parts_folder
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.cli.options import add_loading, chosen_source, loader_options
from saga_fast.config import TrainConfig
from saga_fast.errors import SagaError
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders import BadImages, WholePlan, open_loader
from saga_fast.models.compiled_features import Forward
from saga_fast.models.precision import Precision
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.distributed import is_main
from saga_fast.runtime.files import check_writable, sha256
from saga_fast.runtime.signals import deferring_sigterm


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "build-att",
        help="compute the box table D^att of a data set with a checkpoint",
        description="One forward pass over the data set, one attention box per image, saved as a safetensors file."
        " Options without a stated default have the value of the checkpoint's config.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, metavar="PT", help="a saga-fast checkpoint")
    parser.add_argument("--data", metavar="SRC", help="folder of images; default: the checkpoint's training images")
    parser.add_argument("--out", type=Path, default=Path("att.safetensors"), metavar="T", help="default: %(default)s")
    add_loading(parser)
    parser.add_argument("--delta", type=float, metavar="D", help="threshold on the scaled heatmap, in [0, 1)")
    parser.add_argument(
        "--score",
        choices=get_args(Score),
        help="score that is differentiated; activation and background need no gradient",
    )
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
    content = read_checkpoint(options.ckpt)
    config = checkpoint_config(content, options.ckpt)
    attention_pass = _attention_pass(options, config)
    if options.out.is_dir():
        raise SagaError(f"--out {options.out} is a folder: name a file")
    check_writable(options.out)
    engine, source = chosen_source(options, config.data)
    max_fraction = config.data.max_bad_fraction if options.max_bad_fraction is None else options.max_bad_fraction
    bad = BadImages(source, max_fraction=max_fraction)
    loading = replace(loader_options(options), max_pixels=config.data.max_pixels)
    loader = open_loader(engine, source, WholePlan(size=attention_pass.size), loading, bad=bad)
    parts = Parts(parts_folder(options.out), resume=options.resume)
    start = time.perf_counter()
    with deferring_sigterm():
        table = build_box_table(
            load_model(options.ckpt).to(choose_device(options.device)),
            loader,
            attention_pass,
            metadata={"checkpoint": sha256(options.ckpt), "epoch": str(content["epoch"])},
            parts=parts,
            progress=True,
        )
    rate = len(table) / (time.perf_counter() - start)
    if not is_main():
        return
    table.save(options.out)
    parts.remove()
    bad.write(options.out.parent / "bad_images.txt")
    print(
        f"{options.out}: {len(table)} images, found {100 * table.found_fraction:.1f} %,"
        f" mean box area {table.mean_area:.3f}, {rate:.0f} images/s"
    )
    if bad:
        print(f"{len(bad)} images cannot be decoded, see {options.out.parent / 'bad_images.txt'}")


def _attention_pass(options: argparse.Namespace, config: TrainConfig) -> AttentionPass:
    """The checkpoint's options of the attention pass, replaced by those of the command line."""
    names = ("delta", "score", "mirror", "normalize", "precision", "forward", "size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    try:
        return replace(config.attention_pass, **given)
    except ValueError as error:
        raise SagaError(f"--{error}") from error
