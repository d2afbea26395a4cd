"""``saga-fast build-att``: Algorithm 1 as a command."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, get_args

from saga_fast.attention import build_box_table
from saga_fast.attention_parts import Parts, parts_of
from saga_fast.channel_weights import Score
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.cli.options import add_loading, chosen_source, loading
from saga_fast.compiled_encoder import Forward
from saga_fast.device import choose_device
from saga_fast.distributed import begin, is_main, restarted
from saga_fast.errors import SagaError
from saga_fast.files import check_writable, sha256
from saga_fast.kernels.attention_boxes import Normalize
from saga_fast.loaders import BadImages, WholePlan, open_loader
from saga_fast.precision import Precision
from saga_fast.stopping import stopping_in_order


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "build-att",
        help="make the box table D^att of a data set from a checkpoint",
        description="One forward pass over the data set; one attention box per image, in a small safetensors file."
        " What is not given comes from the checkpoint's config.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, metavar="PT", help="a saga-fast checkpoint")
    parser.add_argument("--data", metavar="SRC", help="folder of images; default: the checkpoint's training images")
    parser.add_argument("--out", type=Path, default=Path("att.safetensors"), metavar="T", help="default: %(default)s")
    add_loading(parser)
    parser.add_argument("--delta", type=float, metavar="D", help="threshold on the scaled heatmap, in [0, 1)")
    parser.add_argument("--score", choices=get_args(Score), help="what is differentiated, if anything")
    text = "average with the mirror image: a second forward pass"
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, help=text)
    parser.add_argument("--normalize", choices=get_args(Normalize), help="scaling of the coarse map")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the forward pass")
    text = "compiled: by TorchInductor; auto: compiled on a CPU where the pass is long enough to pay for it"
    parser.add_argument("--forward", choices=get_args(Forward), help=text)
    parser.add_argument("--size", type=int, metavar="S", help="input and heatmap side, pixels")
    parser.add_argument("--max-bad-fraction", type=float, metavar="F", help="undecodable images allowed; default: 0.01")
    text = "go on with the parts that an interrupted command left beside --out"
    parser.add_argument("--resume", action="store_true", help=text)
    parser.set_defaults(run=run, distributed=True)


def run(options: argparse.Namespace) -> None:
    """Build and save the table, and print what it holds."""
    config = checkpoint_config(read_checkpoint(options.ckpt), options.ckpt)
    given = {name: getattr(options, name) for name in config.looking if getattr(options, name, None) is not None}
    looking = config.looking | given
    if options.out.is_dir():
        raise SagaError(f"--out must be a file, {options.out} is a folder")
    check_writable(options.out)
    engine, source = chosen_source(options, config.data)
    allowed = config.data.max_bad_fraction if options.max_bad_fraction is None else options.max_bad_fraction
    bad = BadImages(source, max_fraction=allowed)
    size = config.attention_size if options.size is None else options.size
    if size < 1:
        raise SagaError(f"--size must be at least 1, got {size}")
    if not 0.0 <= looking["delta"] < 1.0:
        raise SagaError(f"--delta must be in [0, 1), got {looking['delta']}")
    loader = open_loader(
        engine,
        source,
        WholePlan(size=size),
        bad=bad,
        max_pixels=config.data.max_pixels,
        **loading(options),
    )
    parts = Parts(parts_of(options.out))
    resume = options.resume or restarted(str(options.out))
    begin(str(options.out))
    start = time.perf_counter()
    with stopping_in_order():
        table = build_box_table(
            load_model(options.ckpt).to(choose_device(options.device)),
            loader,
            **looking,
            metadata={"checkpoint": sha256(options.ckpt), "epoch": str(read_checkpoint(options.ckpt)["epoch"])},
            progress=True,
            parts=parts,
            resume=resume,
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
