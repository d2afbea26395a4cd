"""The cost of a renewal of D^att: its share of training, predicted and real rebuilds, and as many images as ImageNet.

- *renewal*: the attention pass over N images against ten epochs of training over them. The limit is the arithmetic
  floor, one forward pass over the forward-equivalents of ten epochs (a backward pass counts as two). A ratio of
  1 / 1.15 is the target; above 1 the pass is faster than training's own forward passes, because it is compiled. Rates
  are those of ``saga-fast profile``; compiling is left out, because ImageNet's pass is thousands of times as long.
- *predicted rebuild*: the prediction of ``profile att`` against a real ``saga-fast build-att``, at three sizes.
- *listing*, *pass*, *table*: as many names as ImageNet has, an attention pass over them and the table, with the memory
  that they take (benchmarks/imagenet_size.py).

Run it as ``PYTHONPATH=. python benchmarks/bench_renewal.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.imagenet_size import IMAGENET, imagenet_size
from benchmarks.images import make_images
from benchmarks.scaffold import add_threads, benchmark_parser, record, use_cores
from saga_fast.attention import build_box_table
from saga_fast.checkpoint import load_model
from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict
from saga_fast.loaders import ImageFolder, WholePlan, open_loader
from saga_fast.methods import build_method
from saga_fast.profile.att import AttProfile, profile_att
from saga_fast.profile.figures import Row
from saga_fast.profile.rebuild import Cluster, predict
from saga_fast.profile.train import profile_train
from saga_fast.train.cycle import train

EPOCHS = 10
"""Between renewals: the paper's better choice."""
EQUIVALENTS = {"simclr": 6, "mocov2": 4, "insdis": 3}
"""Forward passes that an image's step costs: views x (one forward and a backward of two), and one per MoCo key."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A network, its input and its batch."""

    encoder: str
    size: int
    batch_size: int

    def config(self, method: str, data: Path, out: Path) -> TrainConfig:
        """The config of a method on ImageNet, with this network and batch."""
        own: dict[str, Any] = {"mocov2": {"queue_size": 1024}, "insdis": {"negatives": 1024}}.get(method, {})
        return config_from_dict(
            {
                "out": str(out),
                "method": {"name": method, **own},
                "encoder": {"name": self.encoder, "stem": "imagenet" if self.size >= 128 else "medium"},
                "data": {"train": str(data)},
                "crop": {"size": self.size, "scale": [0.2, 1.0]},
                "photometric": {"flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
                "batch_size": self.batch_size,
                "plain": {"epochs": 1},
                "saga": {"epochs": 0},
                "attention": {"forward": "compiled"},
                "evaluate": None,
                "channels_last": True,
            },
            where="bench_renewal",
        )


def renewal_share(data: Path, method: str, setup: Setup, seconds: float) -> Row:
    """The row of a method's renewals."""
    equivalents = EQUIVALENTS[method]
    config = setup.config(method, data, Path("not-written"))
    source = ImageFolder(data)
    model = build_method(config.method, config.encoder, num_images=len(source)).to(memory_format=torch.channels_last)
    loader = open_loader("folder", source, WholePlan(size=setup.size), batch_size=setup.batch_size)
    profile = AttProfile(
        model=model, loader=loader, attention_pass=config.attention_pass, images=len(source), seconds=seconds
    )
    rate = {row["name"]: row["images_per_second"] for row in profile_att(profile) if "images_per_second" in row}
    training = next(row for row in profile_train(config, seconds=seconds) if row["name"] == "train")
    limit = equivalents * training["images_per_second"]  # of a pass that takes one forward's share of those epochs
    return {
        "name": f"renewal every {EPOCHS} epochs, {method}, {setup.encoder} at {setup.size}",
        "images_per_second": rate["attention_pass"],
        "limit": limit,
        "against": "a training step's forward-equivalents",
        "ratio": rate["attention_pass"] / limit,
        "target": 1 / 1.15,
        "share_of_training": training["images_per_second"] / (EPOCHS * rate["attention_pass"]),
        "floor_share": 1.0 / (EPOCHS * equivalents),
        "eager_forward_images_per_second": rate["eager_forward"],
        "train_images_per_second": training["images_per_second"],
    }


def predictions(folder: Path, sizes: list[int], seconds: float) -> Iterator[Row]:
    """A trained ResNet-18 at 64 px: predictions from the smallest set of images, and the real rebuild of each set."""
    setup = Setup(encoder="resnet18", size=64, batch_size=64)
    sets = {count: make_images(folder, count, width=143, height=107) for count in sizes}
    smallest = sets[min(sizes)]
    config = setup.config("simclr", smallest, folder / "run")
    shutil.rmtree(config.out, ignore_errors=True)
    ckpt, whole = train(config), WholePlan(size=setup.size)
    for count, data in sets.items():
        loader = open_loader("folder", smallest, whole, batch_size=setup.batch_size)
        profile = AttProfile(
            model=load_model(ckpt),
            loader=loader,
            attention_pass=config.attention_pass,
            images=count,
            seconds=seconds,
        )
        expected = predict(list(profile_att(profile)), images=count, cluster=Cluster(on_gpu=False)).seconds
        begin = time.perf_counter()
        real = open_loader("folder", data, whole, batch_size=setup.batch_size)
        build_box_table(load_model(ckpt), real, config.attention_pass).save(folder / "table.safetensors")
        taken = time.perf_counter() - begin
        yield {
            "name": f"predicted rebuild of {count} images",
            "seconds": expected,
            "limit": taken,
            "against": "the rebuild",
            "ratio": taken / expected,
            "images": count,
        }


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """All rows."""
    for text in options.encoder:
        encoder, side, batch_size = text.split()
        setup = Setup(encoder=encoder, size=int(side), batch_size=int(batch_size))
        width, height = round(setup.size * 500 / 224), round(setup.size * 375 / 224)
        data = make_images(folder, options.images, width=width, height=height)
        for method in options.methods:
            yield renewal_share(data, method, setup, options.seconds)
    yield from predictions(folder, options.sizes, options.seconds)
    yield from imagenet_size(folder, options.names)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=list(EQUIVALENTS), default=list(EQUIVALENTS))
    parser.add_argument("--seconds", type=float, default=30.0, help="per stage")
    parser.add_argument("--images", type=int, default=256, help="for the shares")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 6000], help="for the predictions")
    parser.add_argument("--names", type=int, default=IMAGENET)
    parser.add_argument(
        "--encoder", nargs="+", default=["resnet18 64 64", "resnet50 224 16"], metavar="NAME SIDE BATCH"
    )
    add_threads(parser, default=2)
    options = parser.parse_args()
    use_cores(options.threads)
    with tempfile.TemporaryDirectory() as name:
        record(options.out, rows(options, Path(name)))


if __name__ == "__main__":
    main()
