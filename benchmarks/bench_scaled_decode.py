"""Would the attention pass gain from JPEGs decoded at a fraction of their size? libjpeg scales in the inverse DCT.

An image is decoded at the smallest M/8 of its size, half or less, that leaves both sides at least ``margin`` times the
input's, and is then resized as always; the baseline decodes all of it. Two kinds of rows:

- *decode and resize*: whole images to squares, one thread, the files in memory;
- *boxes*: their mean IoU with those of whole decoding, for trained checkpoints on demo images of 256 px and for an
  untrained ResNet-50 on the photographs. A scaled image is smoothed less than a whole one that the antialiasing filter
  has reduced, and networks react to that.

The requirement: decoding and resizing LEAST_RATIO times as fast where the boxes have an IoU of LEAST_IOU.

Run it as ``PYTHONPATH=. python benchmarks/bench_scaled_decode.py --out FILE [--ckpt CKPT ...]`` on an idle machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from benchmarks.bench_input_size import DELTAS, SIDE, demo_images
from benchmarks.images import make_images
from benchmarks.networks import untrained_model
from benchmarks.scaffold import add_data, add_threads, benchmark_parser, record, use_cores
from saga_fast.attention import AttentionPass
from saga_fast.attention.build import boxes_of_batch
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.loaders import Batch
from saga_fast.loaders.boxes import box_iou
from saga_fast.loaders.decode import Pixels
from saga_fast.methods import Method
from saga_fast.profile.figures import Row, compare, time_pairs

MARGINS = (1.0, 1.5, 2.0)
LEAST_RATIO, LEAST_IOU = 1.15, 0.95
STORED = ("500x375 224 100", "500x375 160 100", "500x375 128 100", "800x600 224 60", "2000x1500 224 20", "72x72 48 500")
BATCH = 20


def decode(data: bytes, size: int, margin: float | None) -> Pixels:
    """(H, W, 3) uint8: the whole JPEG, or at the scale that ``margin`` asks for."""
    if margin is None:
        whole: Pixels = simplejpeg.decode_jpeg(data, "RGB")
        return whole
    least = math.ceil(margin * size)
    scaled: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least, min_factor=2)
    return scaled


def view(data: bytes, size: int, margin: float | None) -> Pixels:
    """The image squashed to (size, size, 3) uint8, as by the loaders."""
    pixels = decode(data, size, margin)
    out = np.empty(3 * size * size, np.uint8)
    crop_resize_image(pixels, np.array([[0, 0, *pixels.shape[:2]]], np.int32), np.array([size]), out)
    return out.reshape(size, size, 3)


def views(jpegs: list[bytes], size: int, margin: float | None) -> list[Pixels]:
    """The views of several images."""
    return [view(data, size, margin) for data in jpegs]


def speeds(jpegs: list[bytes], stored: str, size: int, repeats: int) -> Iterator[Row]:
    """A row of decoding and resizing per margin."""
    ways = {str(margin): partial(views, jpegs, size, margin) for margin in (None, *MARGINS)}
    seconds = time_pairs(ways, repeats=repeats)
    for margin in MARGINS:
        yield compare(
            f"decode and resize {stored} to {size}, at least {margin} times",
            seconds[str(margin)],
            seconds["None"],
            against="full decoding",
            images=len(jpegs),
            target=LEAST_RATIO,
            decoded_side=min(decode(jpegs[0], size, margin).shape[:2]),
        )


def boxes(model: Method, jpegs: list[bytes], margin: float | None, options: AttentionPass) -> npt.NDArray[np.float32]:
    """(N, 4), from the attention pass over whole images of ``options.size``."""
    parts = []
    for at in range(0, len(jpegs), BATCH):
        pixels = torch.from_numpy(np.stack(views(jpegs[at : at + BATCH], options.size, margin)))
        numbers = torch.arange(len(pixels))
        parts.append(boxes_of_batch(model, Batch(pixels[:, None], numbers, numbers), options)[0].numpy())
    return np.concatenate(parts)


def agreements(model: Method, network: str, jpegs: list[bytes], stored: str, size: int) -> Iterator[Row]:
    """A row per score and margin; none for a margin that scales nothing."""
    for score, delta in DELTAS.items():
        options = AttentionPass(size=size, score=score, delta=delta, channels_last=True)
        whole = boxes(model, jpegs, None, options)
        for margin in MARGINS:
            decoded = decode(jpegs[0], size, margin).shape[:2]
            if decoded == decode(jpegs[0], size, None).shape[:2]:
                continue
            iou = box_iou(boxes(model, jpegs, margin, options), whole)
            yield {
                "name": f"boxes of {score}, {network}, {stored} to {size}, at least {margin} times",
                "accuracy": float(iou.mean()),
                "limit": LEAST_IOU,
                "against": "the required IoU",
                "ratio": float(iou.mean()) / LEAST_IOU,
                "iou_half": float((iou >= 0.5).mean()),
                "decoded_side": min(decoded),
                "images": len(jpegs),
            }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the stored images, then those of the checkpoints."""
    for text in options.stored:
        stored, size, count = text.split()
        width, height = (int(side) for side in stored.split("x"))
        jpegs = contents(make_images(options.data, int(count), width=width, height=height))
        yield from speeds(jpegs, stored, int(size), options.repeats)
        if int(size) >= 128:
            model = untrained_model(options.encoder, int(size), channels_last=True)
            yield from agreements(model, f"untrained {options.encoder}", jpegs, stored, int(size))
    jpegs = contents(demo_images(options.demo_images)) if options.ckpt else []
    for ckpt in options.ckpt:
        config, model = checkpoint_config(read_checkpoint(ckpt), ckpt), load_model(ckpt).eval()
        side = config.crop.size
        network = f"{config.method.name} trained at {side}"
        for size in (side, 3 * side // 2, 2 * side):
            yield from agreements(model, network, jpegs, f"{SIDE}x{SIDE}", size)


def contents(folder: Path) -> list[bytes]:
    """The JPEGs of a folder and its subfolders."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--ckpt", type=Path, nargs="*", default=[], help="trained networks, for the boxes")
    parser.add_argument("--stored", nargs="+", default=list(STORED), metavar="WIDTHxHEIGHT SIZE IMAGES")
    parser.add_argument("--encoder", default="resnet50", help="untrained, where SIZE is 128 and more")
    parser.add_argument("--demo-images", type=int, default=600, help="for the checkpoints")
    parser.add_argument("--repeats", type=int, default=9)
    add_threads(parser, default=1)  # of torch; decoding has one
    add_data(parser)
    options = parser.parse_args()
    use_cores(options.threads)
    record(options.out, rows(options))


if __name__ == "__main__":
    main()
