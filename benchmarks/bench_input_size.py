"""Cost and boxes of several values of ``attention.input_size``, compared with those of the largest.

Two kinds of rows per network and size:

- *forward*: images/s of the bare forward pass, compared with that at the largest size, and its floating-point
  operations;
- *boxes*: their mean IoU with the boxes at the largest size, the fraction of images with an IoU of at least 0.5, and,
  if the true boxes are known (demo images), the fraction with an IoU of at least 0.5 with those (CorLoc). Both scores
  at the thresholds of DELTAS; the remaining options are those of the checkpoint's config.

Without ``--sizes`` a checkpoint's sizes are RELATIVE times its training size, and those of ``--untrained``, a timm
ResNet with fresh weights, are ABSOLUTE. Without ``--data`` demo images of 256 px are made. Rows of other networks in
``--out`` are kept.

Run it on an idle machine as
``PYTHONPATH=. python benchmarks/bench_input_size.py --ckpt CKPT --data DIR --sizes 128 160 192 224 --out FILE``;
``saga-fast demo`` and ``python -m benchmarks.study`` leave checkpoints behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.networks import untrained_model
from benchmarks.scaffold import DATA, add_threads, benchmark_parser, read_rows, record, use_cores
from saga_fast.attention import AttentionPass
from saga_fast.attention.build import boxes_of_batch
from saga_fast.attention.channel_weights import Score
from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.demo.data import demo_boxes, make_demo_data
from saga_fast.loaders import ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.boxes import box_iou
from saga_fast.loaders.config import DemoDataConfig
from saga_fast.loaders.true_boxes import true_boxes_file
from saga_fast.methods import Method
from saga_fast.models.compiled_features import flops
from saga_fast.models.precision import autocast
from saga_fast.profile.figures import Row, compare, time_pairs
from saga_fast.runtime.device import choose_device

DELTAS: Mapping[Score, float] = {"pseudo_label": 0.7, "background": 0.6}
RELATIVE = (2 / 3, 1.0, 4 / 3, 3 / 2, 2.0)
ABSOLUTE = (128, 160, 192, 224)
SIDE = 256
"""Of the demo images."""

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network, and the attention passes to compare.

    Attributes:
        name: of the rows.
        model: in eval mode, on its device.
        options: of the pass, whose size, score and delta are replaced.
        sizes: ascending.
    """

    name: str
    model: Method
    options: AttentionPass
    sizes: Sequence[int]

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device


def trained(ckpt: Path, sizes: Sequence[int], device: torch.device) -> Network:
    """The network of a checkpoint, with its config's options."""
    config = checkpoint_config(read_checkpoint(ckpt), ckpt)
    side = config.crop.size
    return Network(
        name=f"{config.method.name}, {config.encoder.name} trained at {side}",
        model=load_model(ckpt).eval().to(device),
        options=config.attention_pass,
        sizes=sorted(set(sizes)) or [round(side * times) for times in RELATIVE],
    )


def untrained(encoder: str, sizes: Sequence[int], device: torch.device) -> Network:
    """A ResNet with fresh weights."""
    chosen = sorted(set(sizes)) or list(ABSOLUTE)
    model = untrained_model(encoder, max(chosen), channels_last=True).to(device)
    return Network(name=f"{encoder}, untrained", model=model, options=AttentionPass(channels_last=True), sizes=chosen)


def boxes_by_score(
    network: Network, source: ImageFolder, size: int, images: int, batch_size: int
) -> dict[Score, Boxes]:
    """Boxes (N, 4) of the data set for each score; rows of images that were left out are NaN.

    At least ``images`` images are computed, in whole batches spread over the data set; the same ones at any size.
    """
    options = LoaderOptions(device=network.device, batch_size=batch_size)
    loader = open_loader("folder", source, WholePlan(size=size), options)
    needed, whole = -(-images // batch_size), len(source) // batch_size
    if needed < len(loader):
        loader.set_batches(np.unique(np.linspace(0, whole - 1, needed).astype(np.int64)))
    boxes: dict[Score, Boxes] = {score: np.full((len(source), 4), np.nan, np.float32) for score in DELTAS}
    for batch in loader:
        for score, delta in DELTAS.items():
            how = replace(network.options, size=size, score=score, delta=delta)
            boxes[score][batch.index.numpy()] = boxes_of_batch(network.model, batch, how)[0].cpu().numpy()
    return boxes


def agreements(network: Network, source: ImageFolder, images: int, batch_size: int) -> Iterator[Row]:
    """A row per score and size."""
    known = true_boxes_file(source.root).is_file()
    true = demo_boxes(source.root, source.paths) if known else None
    by_size = {size: boxes_by_score(network, source, size, images, batch_size) for size in network.sizes}
    largest = network.sizes[-1]
    for score in DELTAS:
        computed = np.logical_and.reduce([np.isfinite(by_size[size][score][:, 0]) for size in network.sizes])
        for size in network.sizes:
            boxes = by_size[size][score][computed]
            iou = box_iou(boxes, by_size[largest][score][computed])
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
                "images": int(computed.sum()),
            }
            if true is not None:
                row["corloc"] = float((box_iou(boxes, true[computed]) >= 0.5).mean())
            yield row


def costs(network: Network, batch_size: int, repeats: int) -> Iterator[Row]:
    """A row per size."""
    ways = {str(size): partial(forward, network, _images(network, batch_size, size)) for size in network.sizes}
    seconds = time_pairs(ways, repeats=repeats)
    largest = network.sizes[-1]
    for size in network.sizes:
        name, baseline = f"forward at {size}, {network.name}", seconds[str(largest)]
        row = compare(name, seconds[str(size)], baseline, against=f"at {largest}", images=batch_size)
        facts: Row = {"network": network.name, "size": size, "batch": batch_size}
        yield row | facts | {"flops": flops(network.model.encoders, size)}


def forward(network: Network, images: torch.Tensor) -> None:
    """The forward pass of one batch, waited for."""
    with torch.no_grad(), autocast(images.device, network.options.precision):
        for branch in network.model.branches(images):
            branch.encoder.features(branch.images).flatten()[0].item()


def _images(network: Network, batch_size: int, size: int) -> torch.Tensor:
    layout = torch.channels_last if network.options.channels_last else torch.contiguous_format
    return torch.randn(batch_size, 3, size, size, device=network.device).to(memory_format=layout)


def demo_images(count: int) -> Path:
    """Demo images of SIDE px, their objects as large as in the study."""
    root = DATA / f"demo_{SIDE}_{count}"
    make_demo_data(root, DemoDataConfig(num_train=count, num_val=12, side=SIDE, object_side=(0.4, 0.7)))
    return root / "train"


def main() -> None:
    parser = benchmark_parser(__doc__)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--ckpt", type=Path, help="a saga-fast checkpoint")
    subject.add_argument("--untrained", metavar="ENCODER", help="one of timm's ResNets")
    parser.add_argument("--data", type=Path, help="folder of images; default: demo images, made if they are missing")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="input sides, pixels; default: see above")
    parser.add_argument("--images", type=int, default=600, help="images to compute, spread over the data")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9, help="timings of the forward pass")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_threads(parser, default=1)
    options = parser.parse_args()
    use_cores(options.threads)
    device = choose_device(options.device)
    if options.ckpt is not None:
        network = trained(options.ckpt, options.sizes, device)
    else:
        network = untrained(options.untrained, options.sizes, device)
    source = ImageFolder(options.data or demo_images(options.images))
    rows = chain(
        costs(network, options.batch_size, options.repeats),
        agreements(network, source, options.images, options.batch_size),
    )
    record(options.out, rows, kept=[row for row in read_rows(options.out) if row["network"] != network.name])


if __name__ == "__main__":
    main()
