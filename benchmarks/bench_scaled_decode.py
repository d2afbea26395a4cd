"""Would the attention pass gain from JPEGs decoded at a fraction of their size? libjpeg scales during the inverse DCT.

An image is decoded at the smallest M/8 of its size, half or less, that leaves both sides at least ``margin`` times the
input's, and then resized as always, beside decoding all of it. Two kinds of rows:

- *decode and resize*: whole images to squares, one thread, the files in memory;
- *boxes*: how far those made from the two kinds of input agree (mean IoU), with trained checkpoints on demo images of
  256 px and an untrained ResNet-50 on the photographs. A scaled image has been smoothed less than a whole one that the
  antialiasing filter made as small, and networks see that.

To be worth it, decoding and resizing would have to be LEAST_RATIO times as fast where the boxes overlap by LEAST_IOU.

Run it as ``PYTHONPATH=. python benchmarks/bench_scaled_decode.py --out FILE [--ckpt CKPT ...]`` on an idle machine.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from benchmarks.bench_attention import build_model
from benchmarks.bench_input_size import DELTAS, SIDE, demo_images
from benchmarks.images import make_images
from benchmarks.loading import bind
from saga_fast.attention import box_iou, boxes_of_batch
from saga_fast.channel_weights import Score
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.kernels.crop_resize import crop_resize_image
from saga_fast.loaders import Batch
from saga_fast.loaders.decode import Pixels
from saga_fast.methods import Method
from saga_fast.profile.figures import Row, compare, line, time_pairs, write

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
    """The image squashed to (size, size, 3) uint8, as the loaders do it."""
    pixels = decode(data, size, margin)
    out = np.empty(3 * size * size, np.uint8)
    crop_resize_image(pixels, np.array([[0, 0, *pixels.shape[:2]]], np.int32), np.array([size]), out)
    return out.reshape(size, size, 3)


def views(jpegs: list[bytes], size: int, margin: float | None) -> list[Pixels]:
    """All of them."""
    return [view(data, size, margin) for data in jpegs]


def speeds(jpegs: list[bytes], stored: str, size: int, repeats: int) -> Iterator[Row]:
    """A row per margin."""
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


def boxes(model: Method, jpegs: list[bytes], size: int, margin: float | None, score: Score) -> npt.NDArray[np.float32]:
    """(N, 4), by the attention pass of whole images."""
    found = []
    for at in range(0, len(jpegs), BATCH):
        pixels = torch.from_numpy(np.stack(views(jpegs[at : at + BATCH], size, margin)))
        numbers = torch.arange(len(pixels))
        part, *_ = boxes_of_batch(
            model,
            Batch(pixels[:, None], numbers, numbers),
            delta=DELTAS[score],
            size=size,
            normalize="minmax",
            score=score,
            mirror=False,
            precision="fp32",
            channels_last=True,
        )
        found.append(part.numpy())
    return np.concatenate(found)


def agreements(model: Method, network: str, jpegs: list[bytes], stored: str, size: int) -> Iterator[Row]:
    """A row per score and margin; none where nothing is scaled."""
    for score in DELTAS:
        whole = boxes(model, jpegs, size, None, score)
        for margin in MARGINS:
            decoded = decode(jpegs[0], size, margin).shape[:2]
            if decoded == decode(jpegs[0], size, None).shape[:2]:
                continue
            iou = box_iou(boxes(model, jpegs, size, margin, score), whole)
            yield {
                "name": f"boxes of {score}, {network}, {stored} to {size}, at least {margin} times",
                "accuracy": float(iou.mean()),
                "limit": LEAST_IOU,
                "against": "the IoU that would do",
                "ratio": float(iou.mean()) / LEAST_IOU,
                "iou_half": float((iou >= 0.5).mean()),
                "decoded_side": min(decoded),
                "images": len(jpegs),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--ckpt", type=Path, nargs="*", default=[], help="trained networks, for the boxes")
    parser.add_argument("--stored", nargs="+", default=list(STORED), metavar="WIDTHxHEIGHT SIZE IMAGES")
    parser.add_argument("--encoder", default="resnet50", help="untrained, where SIZE is 128 and more")
    parser.add_argument("--demo-images", type=int, default=600, help="for the checkpoints")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of torch; decoding takes one")
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "saga-fast-benchmarks", help="keeps the images"
    )
    arguments = parser.parse_args()
    bind(arguments.threads)
    rows: list[Row] = []
    for text in arguments.stored:
        stored, size, count = text.split()
        width, height = (int(side) for side in stored.split("x"))
        jpegs = contents(make_images(arguments.data, int(count), width=width, height=height))
        rows += _shown(speeds(jpegs, stored, int(size), arguments.repeats))
        if int(size) >= 128:
            model = build_model(arguments.encoder, int(size), torch.channels_last)
            rows += _shown(agreements(model, f"untrained {arguments.encoder}", jpegs, stored, int(size)))
    if arguments.ckpt:
        jpegs = contents(demo_images(arguments.demo_images))
    for ckpt in arguments.ckpt:
        config, model = checkpoint_config(read_checkpoint(ckpt), ckpt), load_model(ckpt).eval()
        side = config.crop.size
        network = f"{config.method.name} trained at {side}"
        for size in (side, 3 * side // 2, 2 * side):
            rows += _shown(agreements(model, network, jpegs, f"{SIDE}x{SIDE}", size))
    write(arguments.out, rows)


def contents(folder: Path) -> list[bytes]:
    """The JPEGs of a tree."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


def _shown(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(line(row), flush=True)
        yield row


if __name__ == "__main__":
    main()
