"""What a renewal of D^att costs: its share of training, the cost model beside real rebuilds, and ImageNet's size.

- *renewal*: the attention pass over N images beside ten epochs of training over them, and that share beside the
  arithmetic floor, one forward pass over the forward-equivalents of ten epochs (a backward pass counts as two). A ratio
  of 1 / 1.15 is the target; above 1 the pass is faster than training's own forward passes, because it is compiled.
  Rates are those of ``saga-fast profile``; compiling is left out, as ImageNet's pass is thousands of times as long.
- *predicted rebuild*: what ``profile att`` predicts, beside ``saga-fast build-att`` as it happens, at three sizes.
- *listing*, *pass*, *table*: as many names as ImageNet has, an attention pass over them and the table, with the memory
  that they take.

Run it as ``PYTHONPATH=. python benchmarks/bench_renewal.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from benchmarks.images import make_images
from benchmarks.loading import bind
from saga_fast.attention import build_box_table
from saga_fast.attention_parts import Parts
from saga_fast.checkpoint import load_model
from saga_fast.encoder import EncoderConfig
from saga_fast.loaders import BoxTable, ImageFolder, WholePlan, open_loader
from saga_fast.methods import METHODS, build_method
from saga_fast.profile.att import AttProfile, profile_att
from saga_fast.profile.figures import Row, line, write
from saga_fast.profile.rebuild import predict
from saga_fast.profile.train import profile_train
from saga_fast.train.config import TrainConfig, config_from_dict
from saga_fast.train.cycle import train

CHANNELS_LAST = torch.channels_last
THIN = {"layers": [1] * 4, "channels": [8, 8, 8, 16]}

EPOCHS = 10
"""Between renewals: the paper's better choice."""
EQUIVALENTS = {"simclr": 6, "mocov2": 4, "insdis": 3}
"""Forward passes that an image's step costs: views x (one forward and a backward of two), and MoCo's keys one each."""
IMAGENET = 1281167


def experiment(method: str, encoder: str, size: int, data: Path, out: Path, batch_size: int) -> TrainConfig:
    """A method on a ResNet, as its config for ImageNet says but for the batch."""
    own: dict[str, Any] = {"mocov2": {"queue_size": 1024}, "insdis": {"negatives": 1024}}.get(method, {})
    return config_from_dict(
        {
            "out": str(out),
            "method": {"name": method, **own},
            "encoder": {"name": encoder, "stem": "imagenet" if size >= 128 else "medium"},
            "data": {"train": str(data)},
            "crop": {"size": size, "scale": [0.2, 1.0]},
            "photometric": {"flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
            "batch_size": batch_size,
            "plain": {"epochs": 1},
            "saga": {"epochs": 0},
            "attention": {"forward": "compiled"},
            "evaluate": None,
            "channels_last": True,
        },
        where="bench_renewal",
    )


def renewals(data: Path, methods: list[str], encoder: str, size: int, batch_size: int, seconds: float) -> Iterator[Row]:
    """A row per method."""
    for method in methods:
        equivalents = EQUIVALENTS[method]
        config = experiment(method, encoder, size, data, Path("not-written"), batch_size)
        source = ImageFolder(data)
        model = build_method(config.method, config.encoder, num_images=len(source)).to(memory_format=CHANNELS_LAST)
        loader = open_loader("folder", source, WholePlan(size=size), batch_size=batch_size)
        profile = AttProfile(model=model, loader=loader, looking=config.looking, images=len(source), seconds=seconds)
        rate = {row["name"]: row["images_per_second"] for row in profile_att(profile) if "images_per_second" in row}
        training = next(row for row in profile_train(config, seconds=seconds) if row["name"] == "train")
        # Of a pass that takes one forward's share of those epochs.
        limit = equivalents * training["images_per_second"]
        yield {
            "name": f"renewal every {EPOCHS} epochs, {method}, {encoder} at {size}",
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
    """A trained ResNet-18 at 64 px: the prediction from the smallest set of images, and the real rebuild of each."""
    sets = {count: make_images(folder, count, width=143, height=107) for count in sizes}
    smallest = sets[min(sizes)]
    config = experiment("simclr", "resnet18", 64, smallest, folder / "run", 64)
    shutil.rmtree(config.out, ignore_errors=True)
    ckpt = train(config)
    for count, data in sets.items():
        loader = open_loader("folder", smallest, WholePlan(size=64), batch_size=64)
        profile = AttProfile(
            model=load_model(ckpt), loader=loader, looking=config.looking, images=count, seconds=seconds
        )
        expected = predict(list(profile_att(profile)), images=count, on_gpu=False).seconds
        begin = time.perf_counter()
        real = open_loader("folder", data, WholePlan(size=64), batch_size=64)
        build_box_table(load_model(ckpt), real, **config.looking).save(folder / "table.safetensors")
        taken = time.perf_counter() - begin
        yield {
            "name": f"predicted rebuild of {count} images",
            "seconds": expected,
            "limit": taken,
            "against": "the rebuild",
            "ratio": taken / expected,
            "images": count,
        }


def imagenet(folder: Path, names: int) -> Iterator[Row]:
    """As many names as ImageNet has: their listing and fingerprint, an attention pass over all, and the table's file.

    The images are 8 px wide and the network looks at 32 px: memory is measured here, beside the model and batches of a
    pass over the first folder of a thousand names. Names share files.
    """
    root = folder / "names"
    for at in range(0, names, 1000):
        parent = root / f"n{at:08d}"
        parent.mkdir(parents=True)
        first = parent / f"n{at:08d}_{at:08d}.JPEG"
        Image.effect_noise((8, 8), 64.0).convert("RGB").save(first)
        for number in range(at + 1, min(at + 1000, names)):
            os.link(first, parent / f"n{at:08d}_{number:08d}.JPEG")
    torch.manual_seed(0)
    model = build_method(METHODS["simclr"].Config(name="simclr"), EncoderConfig(name="resnet18", args=THIN))
    few = open_loader("folder", ImageFolder(root / "n00000000"), WholePlan(size=32), batch_size=256)
    build_box_table(model, few, forward="eager")
    memory = psutil.Process().memory_info
    before, begin = memory().rss, time.perf_counter()
    source = ImageFolder(root)
    fingerprint = source.fingerprint
    seconds, grown = time.perf_counter() - begin, memory().rss - before
    yield _taken("listing and fingerprint", seconds, 30.0, names, grown)
    begin = time.perf_counter()
    with _highest() as highest:
        loader = open_loader("folder", source, WholePlan(size=32), batch_size=256)
        table = build_box_table(model, loader, forward="eager", parts=Parts(folder / "parts"))
    grown = max(highest) - before
    yield {
        "name": f"attention pass and listing, {names} images",
        "bytes": grown,
        "limit": 1e9,
        "against": "the target, beside model and batches",
        "ratio": 1e9 / grown,
        "pass_seconds": time.perf_counter() - begin,
    }
    begin = time.perf_counter()
    table.save(folder / "names.safetensors")
    BoxTable.open(folder / "names.safetensors").check(fingerprint, len(source))
    yield _taken("table saved, opened and checked", time.perf_counter() - begin, 30.0, names, memory().rss - before)
    shutil.rmtree(root)


@contextmanager
def _highest() -> Iterator[list[int]]:
    """This process's memory, sampled every 50 ms while the block runs."""
    samples, ended, process = [0], threading.Event(), psutil.Process()

    def sample() -> None:
        while not ended.wait(0.05):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _taken(name: str, seconds: float, target: float, images: int, grown: int) -> Row:
    row: Row = {"name": f"{name}, {images} images", "seconds": seconds, "limit": target, "against": "the target"}
    return row | {"ratio": target / seconds, "memory_growth_bytes": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--methods", nargs="+", choices=list(EQUIVALENTS), default=list(EQUIVALENTS))
    parser.add_argument("--seconds", type=float, default=30.0, help="per stage")
    parser.add_argument("--images", type=int, default=256, help="for the shares")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 6000], help="for the predictions")
    parser.add_argument("--names", type=int, default=IMAGENET)
    parser.add_argument(
        "--encoder", nargs="+", default=["resnet18 64 64", "resnet50 224 16"], metavar="NAME SIDE BATCH"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bind(arguments.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text in arguments.encoder:
            encoder, side, batch_size = text.split()
            size = int(side)
            data = make_images(folder, arguments.images, width=round(size * 500 / 224), height=round(size * 375 / 224))
            rows += _shown(renewals(data, arguments.methods, encoder, size, int(batch_size), arguments.seconds))
        rows += _shown(predictions(folder, arguments.sizes, arguments.seconds))
        rows += _shown(imagenet(folder, arguments.names))
    write(arguments.out, rows)


def _shown(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(line(row), flush=True)
        yield row


if __name__ == "__main__":
    main()
