"""What ``attention.input_size`` costs and gives: the boxes at several input sizes beside those at the largest.

Two kinds of rows per network and size:

- *forward*: images/s of the bare forward pass, beside that at the largest size, and its floating-point operations;
- *boxes*: their mean IoU with the boxes at the largest size, the fraction of images where that is 0.5 and more, and,
  where the true boxes are known (demo images), the fraction that has an IoU of 0.5 with those (CorLoc). Both scores at
  the thresholds of DELTAS; all else is as the checkpoint's config says.

Without ``--sizes`` a checkpoint looks at RELATIVE times the size that it was trained at, and ``--untrained``, a timm
ResNet with fresh weights, at ABSOLUTE. Without ``--data`` demo images of 256 px are made. Rows of other networks that
``--out`` holds already are kept.

Run it on an idle machine as
``PYTHONPATH=. python benchmarks/bench_input_size.py --ckpt CKPT --data DIR --sizes 128 160 192 224 --out FILE``;
``saga-fast demo`` and ``python -m benchmarks.study`` leave checkpoints behind.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bench_attention import build_model
from benchmarks.loading import bind
from benchmarks.study.__main__ import rows_of
from saga_fast.attention import box_iou, boxes_of_batch
from saga_fast.channel_weights import Score
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.compiled_encoder import flops
from saga_fast.demo_data import DemoDataConfig, make_demo_data, read_true_boxes, true_boxes_file
from saga_fast.device import choose_device
from saga_fast.loaders import ImageFolder, WholePlan, open_loader
from saga_fast.methods import Method
from saga_fast.precision import autocast
from saga_fast.profile.figures import Row, compare, line, time_pairs, write

DELTAS: Mapping[Score, float] = {"pseudo_label": 0.7, "background": 0.6}
RELATIVE = (2 / 3, 1.0, 4 / 3, 3 / 2, 2.0)
ABSOLUTE = (128, 160, 192, 224)
SIDE = 256
"""Of the demo images."""

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """A network and how it looks at images.

    Attributes:
        name: for the rows.
        model: in eval mode, on its device.
        looking: arguments of ``boxes_of_batch``, but for size, score and delta.
        sizes: ascending.
    """

    name: str
    model: Method
    looking: Mapping[str, Any]
    sizes: Sequence[int]


def trained(ckpt: Path, sizes: Sequence[int], device: torch.device) -> Network:
    """The network of a checkpoint."""
    config = checkpoint_config(read_checkpoint(ckpt), ckpt)
    own, side = config.looking, config.crop.size
    looking = {name: own[name] for name in ("normalize", "mirror", "precision", "channels_last")}
    name = f"{config.method.name}, {config.encoder.name} trained at {side}"
    chosen = sorted(set(sizes)) or [round(side * times) for times in RELATIVE]
    return Network(name, load_model(ckpt).eval().to(device), looking, chosen)


def untrained(encoder: str, sizes: Sequence[int], device: torch.device) -> Network:
    """A ResNet with fresh weights."""
    chosen = sorted(set(sizes)) or list(ABSOLUTE)
    model = build_model(encoder, max(chosen), torch.channels_last).to(device)
    looking = {"normalize": "minmax", "mirror": False, "precision": "fp32", "channels_last": True}
    return Network(f"{encoder}, untrained", model, looking, chosen)


def looked_at(network: Network, source: ImageFolder, size: int, images: int, batch_size: int) -> dict[Score, Boxes]:
    """Boxes (N, 4) of the whole data set in its order for each score; rows that were not looked at are NaN.

    ``images`` of it at least are looked at, in whole batches spread over it; the same ones at any size.
    """
    device = next(network.model.parameters()).device
    loader = open_loader("folder", source, WholePlan(size=size), batch_size=batch_size, device=device)
    wanted, whole = -(-images // batch_size), len(source) // batch_size
    if wanted < len(loader):
        loader.set_batches(np.unique(np.linspace(0, whole - 1, wanted).astype(np.int64)))
    found: dict[Score, Boxes] = {score: np.full((len(source), 4), np.nan, np.float32) for score in DELTAS}
    for batch in loader:
        for score, delta in DELTAS.items():
            boxes, *_ = boxes_of_batch(network.model, batch, delta=delta, size=size, score=score, **network.looking)
            found[score][batch.index.numpy()] = boxes.cpu().numpy()
    return found


def agreements(network: Network, source: ImageFolder, images: int, batch_size: int) -> Iterator[Row]:
    """A row per score and size."""
    known = true_boxes_file(source.root).is_file()
    true = read_true_boxes(source.root, source.paths) if known else None
    found = {size: looked_at(network, source, size, images, batch_size) for size in network.sizes}
    largest = network.sizes[-1]
    for score in DELTAS:
        seen = np.logical_and.reduce([np.isfinite(found[size][score][:, 0]) for size in network.sizes])
        for size in network.sizes:
            boxes = found[size][score][seen]
            iou = box_iou(boxes, found[largest][score][seen])
            row: Row = {
                "name": f"boxes of {score} at {size}, {network.name}",
                "accuracy": float(iou.mean()),
                "limit": 1.0,
                "against": f"the boxes at {largest}",
                "ratio": float(iou.mean()),
                "network": network.name,
                "score": score,
                "size": size,
                "iou_half": float((iou >= 0.5).mean()),
                "box_area": float((boxes[:, 2] * boxes[:, 3]).mean()),
                "images": int(seen.sum()),
            }
            if true is not None:
                row["corloc"] = float((box_iou(boxes, true[seen]) >= 0.5).mean())
            yield row


def costs(network: Network, batch_size: int, repeats: int) -> Iterator[Row]:
    """A row per size."""
    ways = {str(size): partial(forward, network, _images(network, batch_size, size)) for size in network.sizes}
    seconds = time_pairs(ways, repeats=repeats)
    largest = network.sizes[-1]
    for size in network.sizes:
        yield compare(
            f"forward at {size}, {network.name}",
            seconds[str(size)],
            seconds[str(largest)],
            against=f"at {largest}",
            images=batch_size,
            network=network.name,
            size=size,
            batch=batch_size,
            flops=flops(network.model, size),
        )


def forward(network: Network, images: torch.Tensor) -> None:
    """The forward pass of one batch, waited for."""
    with torch.no_grad(), autocast(images.device, network.looking["precision"]):
        for branch in network.model.branches(images):
            branch.encoder.features(branch.images).flatten()[0].item()


def _images(network: Network, batch_size: int, size: int) -> torch.Tensor:
    layout = torch.channels_last if network.looking["channels_last"] else torch.contiguous_format
    device = next(network.model.parameters()).device
    return torch.randn(batch_size, 3, size, size, device=device).to(memory_format=layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--ckpt", type=Path, help="a saga-fast checkpoint")
    of.add_argument("--untrained", metavar="ENCODER", help="one of timm's ResNets")
    parser.add_argument("--data", type=Path, help="folder of images; default: demo images, made when they are missing")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="input sides, pixels; default: see above")
    parser.add_argument("--images", type=int, default=600, help="so many are looked at, spread over the data")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9, help="timings of the forward pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    bind(arguments.threads)
    device = choose_device(arguments.device)
    if arguments.ckpt is not None:
        network = trained(arguments.ckpt, arguments.sizes, device)
    else:
        network = untrained(arguments.untrained, arguments.sizes, device)
    rows = [row for row in rows_of(arguments.out) if row["network"] != network.name]
    source = ImageFolder(arguments.data or demo_images(arguments.images))
    for row in chain(
        costs(network, arguments.batch_size, arguments.repeats),
        agreements(network, source, arguments.images, arguments.batch_size),
    ):
        print(line(row), flush=True)
        rows.append(row)
    write(arguments.out, rows)


def demo_images(count: int) -> Path:
    """Demo images of SIDE px, with the objects as large in them as in the study's."""
    root = Path(tempfile.gettempdir()) / "saga-fast-benchmarks" / f"demo_{SIDE}_{count}"
    make_demo_data(root, DemoDataConfig(num_train=count, num_val=12, side=SIDE, object_side=(0.4, 0.7)))
    return root / "train"


if __name__ == "__main__":
    main()
