"""``saga-fast pack``: a folder of images as one FFCV file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.loaders import ImageFolder
from saga_fast.loaders.engines import require_engine, usable_cores
from saga_fast.loaders.true_boxes import copy_true_boxes
from saga_fast.runtime.files import check_writable


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "pack",
        help="pack a folder of images into a .beton file for the ffcv engine",
        description="Pack a folder of images into an FFCV file, OUT.beton, and the list of its images, OUT.beton.json:"
        " the engine needs both. True object boxes (DIR/boxes.json) are copied to OUT.boxes.json. Box tables and"
        " indices stay those of the folder. Undecodable images are listed in OUT.beton.bad.txt and left out.",
    )
    parser.add_argument("source", type=Path, metavar="DIR", help="DIR/CLASS/.../*.jpg, or DIR/*.jpg")
    parser.add_argument("out", type=Path, metavar="OUT.beton")
    parser.add_argument("--classes", type=Path, metavar="TXT", help="pack only the class folders that its lines name")
    parser.add_argument(
        "--mode",
        choices=("raw", "jpg", "smart", "proportion"),
        default="jpg",
        help="jpg (default) keeps JPEG files as they are; raw stores pixels; smart: jpg above --smart-threshold;"
        " proportion: jpg with --compress-probability",
    )
    parser.add_argument("--max-resolution", type=int, metavar="PX", help="shrink larger images to this longest side")
    parser.add_argument(
        "--quality", type=int, default=90, metavar="Q", help="of images that are encoded; default: %(default)s"
    )
    parser.add_argument(
        "--compress-probability", type=float, default=0.5, metavar="P", help="for proportion; default: %(default)s"
    )
    parser.add_argument("--smart-threshold", type=int, metavar="BYTES", help="for smart: of an image's pixels")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, metavar="F", help="undecodable images; default: %(default)s"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default: all cores")
    parser.add_argument(
        "--chunk-size", type=int, default=16, metavar="N", help="images a thread takes at a time; default: %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Pack, and say what was packed."""
    require_engine("ffcv")
    from saga_fast.loaders.ffcv.pack import PackOptions, pack

    packing = PackOptions(
        mode=options.mode,
        max_resolution=options.max_resolution,
        quality=options.quality,
        compress_probability=options.compress_probability,
        smart_threshold=options.smart_threshold,
    )
    if not 0.0 <= options.max_bad_fraction <= 1.0:
        raise SagaError(f"--max-bad-fraction must be in [0, 1], got {options.max_bad_fraction}")
    source = ImageFolder(options.source, classes=options.classes)
    check_writable(options.out)
    bad = pack(
        source,
        options.out,
        packing,
        workers=usable_cores() if options.workers is None else options.workers,
        chunk_size=options.chunk_size,
        max_bad_fraction=options.max_bad_fraction,
        force=options.force,
        progress=True,
    )
    listed = options.out.with_name(f"{options.out.name}.bad.txt")
    bad.write(listed)
    copy_true_boxes(options.source, options.out)
    size = options.out.stat().st_size / 2**20
    print(f"{options.out}: {len(source) - len(bad)} of {len(source)} images, {size:.1f} MiB")
    if len(bad):
        print(f"{len(bad)} images cannot be decoded, see {listed}")
