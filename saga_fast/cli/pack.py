"""``saga-fast pack``: images as one FFCV file."""

from __future__ import annotations

import argparse
from typing import Any

from saga_fast.cli.options import add_cache, check_outputs, user_location, user_path
from saga_fast.errors import SagaError
from saga_fast.loaders import open_source
from saga_fast.loaders.engines import require_engine
from saga_fast.loaders.true_boxes import copy_true_boxes
from saga_fast.runtime.files import is_stream
from saga_fast.runtime.terminal import say
from saga_fast.runtime.threads import usable_cores


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "pack",
        help="pack images into a .beton file for the ffcv engine",
        description="Pack a folder of images, or what else the folder engine reads, into an FFCV file, OUT.beton, and"
        " the list of its images, OUT.beton.json: the engine needs both. True object boxes (DIR/boxes.json) are copied"
        " to OUT.boxes.json. Indices do not change, so box tables of the folder are valid for the file. Undecodable"
        " images are left out and listed in OUT.beton.bad.txt.",
    )
    text = "DIR/CLASS/.../*.jpg or DIR/*.jpg; tar files, parquet files, an address"
    parser.add_argument("source", type=user_location, metavar="DIR", help=text)
    parser.add_argument("out", type=user_path, metavar="OUT.beton")
    parser.add_argument(
        "--classes", type=user_path, metavar="TXT", help="file with one class folder per line: pack only these"
    )
    parser.add_argument(
        "--mode",
        choices=("raw", "jpg", "yuv420", "smart", "proportion"),
        default="jpg",
        help="jpg (default): JPEG files unchanged; raw: pixels; yuv420: half of raw's bytes, the pixels of most JPEGs"
        " unchanged, for our engine only; smart: jpg above --smart-threshold, else raw;"
        " proportion: jpg with --compress-probability, else raw",
    )
    parser.add_argument("--max-resolution", type=int, metavar="PX", help="longest side: larger images are shrunk")
    parser.add_argument(
        "--quality",
        type=int,
        default=90,
        metavar="Q",
        help="JPEG quality of images that are encoded; default: %(default)s",
    )
    parser.add_argument(
        "--compress-probability",
        type=float,
        default=0.5,
        metavar="P",
        help="probability of jpg in mode proportion; default: %(default)s",
    )
    parser.add_argument(
        "--smart-threshold", type=int, metavar="BYTES", help="in mode smart: jpg for images with more bytes of pixels"
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        metavar="F",
        help="allowed fraction of undecodable images; default: %(default)s",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: all cores")
    parser.add_argument(
        "--chunk-size", type=int, default=16, metavar="N", help="images per task of a thread; default: %(default)s"
    )
    add_cache(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Pack the images, and print their number and the file's size."""
    require_engine("ffcv")
    from saga_fast.loaders.ffcv.pack import PackOptions, pack

    pack_options = PackOptions(
        mode=options.mode,
        max_resolution=options.max_resolution,
        quality=options.quality,
        compress_probability=options.compress_probability,
        smart_threshold=options.smart_threshold,
    )
    if not 0.0 <= options.max_bad_fraction <= 1.0:
        raise SagaError(f"--max-bad-fraction {options.max_bad_fraction} must be in [0, 1]")
    if is_stream(options.out):
        raise SagaError(f"{options.out} is a device or a pipe: a .beton file is written at several places, name a file")
    bad_list = options.out.with_name(f"{options.out.name}.bad.txt")
    check_outputs([options.out, bad_list], [options.source, options.classes])
    source = open_source("folder", options.source, classes=options.classes, cache=options.cache)
    bad = pack(
        source,
        options.out,
        pack_options,
        workers=usable_cores() if options.workers is None else options.workers,
        chunk_size=options.chunk_size,
        max_bad_fraction=options.max_bad_fraction,
        force=options.force,
        progress=True,
    )
    bad.write(bad_list)
    copy_true_boxes(options.source, options.out)
    size = options.out.stat().st_size / 2**20
    say(f"{options.out}: {len(source) - len(bad)} of {len(source)} images, {size:.1f} MiB")
    if len(bad):
        say(f"{len(bad)} images cannot be decoded, see {bad_list}")
