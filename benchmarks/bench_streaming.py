"""What streaming attention costs a training step, and what its maps take.

Steps are made by ``saga_fast.train.epoch.train_epoch`` on a batch in memory, some with the stream and some without it
in turn, so that what the machine does meanwhile hits both alike. ``noise`` is the median relative difference of two
rounds without the stream, one after the other; 1 / 1.02 is the target of the ratio.

Run it as ``PYTHONPATH=. python benchmarks/bench_streaming.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from benchmarks.bench_renewal import EQUIVALENTS, IMAGENET, experiment
from benchmarks.images import make_images
from benchmarks.loading import bind
from saga_fast.attention_config import AttentionConfig
from saga_fast.channel_weights import Score
from saga_fast.loaders import Batch, Loader, open_loader, open_source
from saga_fast.loaders.plan import SizesKept
from saga_fast.methods import Method, build_method
from saga_fast.profile.figures import Row, compare, line, time_pairs, write
from saga_fast.streaming import StreamedMaps
from saga_fast.train.config import TrainConfig
from saga_fast.train.epoch import train_epoch
from saga_fast.train.optimizer import build_optimizer
from saga_fast.train.plan import crop_plan

TARGET = 1 / 1.02


class _Same(Loader):
    """An epoch of so many times the same batch."""

    def __init__(self, loader: Loader, steps: int) -> None:
        super().__init__(loader.source, loader.plan, loader.options)
        self._batch, self._steps = next(iter(loader)), steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self._batch, self._steps)


def streaming(
    data: Path, method: str, encoder: str, size: int, batch_size: int, scores: list[Score], steps: int, rounds: int
) -> Iterator[Row]:
    """A row per score."""
    config = experiment(method, encoder, size, data, Path("not-written"), batch_size)
    source = open_source("folder", str(data))
    model = build_method(config.method, config.encoder, num_images=len(source)).to(memory_format=torch.channels_last)
    for score in scores:
        attention = AttentionConfig(renew="streaming", score=score)
        stream = StreamedMaps(model, len(source), size=size, attention=attention)
        plan = SizesKept(crop_plan(config, model), stream.sizes)
        loader = _Same(open_loader("folder", source, plan, batch_size=batch_size, shuffle=True, drop_last=True), steps)
        ways: dict[str, Callable[[], None]] = {
            "streaming": partial(_epoch, config, model, loader, stream),
            "alone": partial(_epoch, config, model, loader, None),
        }
        seconds = time_pairs(ways, repeats=rounds)
        alone = seconds["alone"]
        per_image = sum(rows[0].numel() * rows.element_size() for rows in stream.state().values())
        yield compare(
            f"streaming step, {method}, {encoder} at {size}, {score}",
            seconds["streaming"] / steps,
            alone / steps,
            against="the step alone",
            target=TARGET,
            noise=float(np.median(np.abs(alone[1:] / alone[:-1] - 1.0))),
            batch_size=batch_size,
            map=list(stream.state()["weights"].shape[1:]),
            bytes_per_image=per_image,
            bytes_imagenet=per_image * IMAGENET,
        )


def _epoch(config: TrainConfig, model: Method, loader: Loader, stream: StreamedMaps | None) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(config.optimizer, model)
    phase = replace(config.plain, epochs=1, warmup_epochs=0)
    train_epoch(config, phase, model, optimizer, scaler, loader, epoch=0, phase_epoch=0, progress=False, stream=stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--methods", nargs="+", choices=list(EQUIVALENTS), default=["simclr", "mocov2"])
    parser.add_argument("--scores", nargs="+", choices=get_args(Score), default=["pseudo_label", "background"])
    parser.add_argument("--steps", type=int, default=4, help="per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--encoder", nargs="+", default=["resnet18 64 128", "resnet50 224 16"], metavar="NAME SIDE BATCH"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    bind(arguments.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for text in arguments.encoder:
            encoder, side, batch_size = text.split()
            size, batch = int(side), int(batch_size)
            data = make_images(Path(name), 2 * batch, width=round(size * 500 / 224), height=round(size * 375 / 224))
            for method in arguments.methods:
                steps, rounds = arguments.steps, arguments.rounds
                for row in streaming(data, method, encoder, size, batch, arguments.scores, steps, rounds):
                    rows.append(row)
                    print(line(row), flush=True)
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
