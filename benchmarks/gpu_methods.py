"""A training step of each method as ``saga-fast train`` makes it, against the same step on ready views."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_timing import Bench, Way, time_ways
from saga_fast.config import TrainConfig
from saga_fast.loaders import Batch
from saga_fast.loaders.config import CropConfig, DataConfig
from saga_fast.methods import METHODS, MethodConfig, build_method
from saga_fast.methods.bank import BankConfig
from saga_fast.methods.moco import MoCoConfig
from saga_fast.methods.pirl import PIRLConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.precision import Precision, autocast
from saga_fast.optim import OptimizerConfig, PhaseConfig, build_optimizer
from saga_fast.profile.figures import Row, compare
from saga_fast.profile.kernels import MOCO_V2
from saga_fast.train.plan import crop_plan
from saga_fast.train.step import Training, backward_step, update_step, views_of_batch

IMAGENET = 1_281_167
TINY = EncoderConfig(name="resnet18", args={"layers": [1] * 4, "channels": [8, 8, 8, 16]})


def method_config(bench: Bench, name: str) -> MethodConfig:
    """The method's defaults; with few negatives and small patches for ``--small``."""
    kind = METHODS[name].Config
    small: dict[str, Any] = {}
    if bench.small and issubclass(kind, MoCoConfig):
        small = {"queue_size": 64}
    if bench.small and issubclass(kind, BankConfig):
        small = {"negatives": 16}
    if bench.small and issubclass(kind, PIRLConfig):
        small |= {"jigsaw_size": 48, "jigsaw_patch": 12}
    return kind(name=name, **small)


def training_of(bench: Bench, method: MethodConfig, precision: Precision) -> Training:
    """A ResNet-50 and its optimiser, as a run has them; the learning rate is small enough for random images."""
    config = TrainConfig(
        out="unused",
        method=method,
        data=DataConfig(train="unused"),
        encoder=TINY if bench.small else EncoderConfig(),
        crop=CropConfig(size=32 if bench.small else 224),
        photometric=MOCO_V2,
        plain=PhaseConfig(epochs=1, warmup_epochs=0, lr=1e-3),
        # A dry run compiles the same kernels for fewer images, and leaves the memory to the sections beside it.
        batch_size=8 if bench.small else 64 if bench.dry else 256,
        precision=precision,
        channels_last=True,
    )
    torch.manual_seed(0)
    with bench.device:  # weights and banks are drawn there
        model = build_method(method, config.encoder, num_images=128 if bench.small else IMAGENET)
    model = model.to(bench.device).to(memory_format=torch.channels_last).train()
    model.begin_epoch(config.seed, 0)
    optimizer = build_optimizer(OptimizerConfig(), model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    scaler = torch.amp.GradScaler(bench.device.type, enabled=precision == "fp16")
    return Training(config=config, model=model, network=model, optimizer=optimizer, scaler=scaler)


def ready_batch(bench: Bench, training: Training) -> Batch:
    """Random views on the device, of the sizes that the method takes."""
    images = training.config.batch_size
    views, *more = (
        torch.randint(256, (images, count, side, side, 3), dtype=torch.uint8, device=bench.device)
        for side, count in crop_plan(training.config, training.model).groups
    )
    return Batch(views, torch.arange(images), torch.full((images,), -1), tuple(more))


def step_on(training: Training, index: Tensor, views: list[Tensor]) -> None:
    """A step whose views are augmented and normalised already, and whose index is on the device."""
    main, *more = views
    with autocast(training.device, training.config.precision):
        loss = training.network(main, index, *more).loss
    training.optimizer.zero_grad(set_to_none=True)
    training.scaler.scale(loss).backward()
    update_step(training)


def time_methods(bench: Bench) -> Iterator[Row]:
    """All methods that train, in bf16 on a GPU; SimCLR also in fp16, whose loss is scaled."""
    usual: Precision = "bf16" if bench.cuda else "fp32"
    ways = [(name, usual) for name, kind in METHODS.items() if kind.contrastive]
    for name, precision in [*ways, ("simclr", "fp16")] if bench.cuda else ways:
        yield time_method(bench, name, precision)
        gc.collect()
        if bench.cuda:
            torch.cuda.empty_cache()


def time_method(bench: Bench, name: str, precision: Precision) -> Row:
    """The row of a method."""
    bench.check_time()
    training = training_of(bench, method_config(bench, name), precision)
    batch = ready_batch(bench, training)
    index, views = batch.index.to(bench.device), views_of_batch(training, batch, 0)
    epochs = iter(range(2**31))

    def step() -> None:
        backward_step(training, batch, next(epochs))
        update_step(training)

    rounds = 2 if bench.cuda else 1
    ways = {
        "step": Way([step], rounds),
        "ready": Way([partial(step_on, training, index, views)], rounds),
        "views": Way([lambda: views_of_batch(training, batch, next(epochs))], rounds),
    }
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = time_ways(bench, ways, repeats=6)
    facts: Row = {"peak_bytes": torch.cuda.max_memory_allocated()} if bench.cuda else {}
    facts |= {"views_share": float(np.median(seconds["views"]) / np.median(seconds["step"]))}
    facts |= {
        "side": training.config.crop.size,
        "network": training.config.encoder.name,
        "clock": bench.clock(ways["step"]),
    }
    against = "the step on ready views"
    return (
        compare(
            f"training step, {name}, {precision}", seconds["step"], seconds["ready"], against=against, images=len(index)
        )
        | facts
    )
