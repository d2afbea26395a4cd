"""``saga-fast eval linear``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from saga_fast.cli.options import check_positive, user_path
from saga_fast.cli.subject import Subject, add_subject, open_subject, write_rows
from saga_fast.errors import SagaError
from saga_fast.evaluate.linear import Accuracy, ProbeLoaders, linear_probe
from saga_fast.evaluate.protocols import PROTOCOLS, ProbeConfig, choose_protocol
from saga_fast.loaders import BadImages, CentrePlan, CropPlan, Plan, WholePlan
from saga_fast.runtime.distributed import is_main, rank, world_size
from saga_fast.runtime.files import sha256
from saga_fast.runtime.terminal import say


def add_parser(protocols: Any) -> None:
    """Add the command."""
    parser = protocols.add_parser(
        "linear",
        help="linear probe, top-1 and top-5",
        description="Train a linear classifier on the frozen encoder's pooled features and test it. The protocols are"
        " published ones; all train on random crops and test on the centre crop. SRC contains train/ and val/, or SRC"
        " is the training images and --val the validation images. A learning rate of 30 is for a ResNet-50 trained with"
        " MoCo.",
    )
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="moco", help="default: %(default)s")
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="default: the protocol's; steps of the schedule are scaled"
    )
    parser.add_argument(
        "--lr", type=float, metavar="R", help="initial learning rate, not rescaled; default: the protocol's"
    )
    parser.add_argument("--weight-decay", type=float, metavar="W", help="default: the protocol's")
    parser.add_argument(
        "--test-crop",
        metavar="F",
        help="side of the test crop / shorter side (0.875), or 'whole': the image resized to a square",
    )
    parser.add_argument(
        "--cached",
        action="store_true",
        help="compute the features of the training images once, without augmentation: a fast estimate",
    )
    parser.add_argument("--every", type=int, default=10, metavar="N", help="epochs between tests; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="folder for probe.pt, from which a killed probe resumes"
    )
    add_subject(parser, batch_size=None)
    parser.set_defaults(run=run, distributed=True)


def run(options: argparse.Namespace) -> None:
    """Train the probe, print the last test and write all tests."""
    check_positive(options, "epochs", "lr", "batch_size", "every")
    config = choose_protocol(
        options.protocol,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        centre=_centre_fraction(options.test_crop),
    )
    options.batch_size = config.batch_size
    subject = open_subject(options, *([options.out / "probe.pt"] if options.out is not None else []))
    if subject.val is None:
        raise SagaError(f"{options.data}: the linear probe needs validation images, in SRC/val/ or with --val")
    history = linear_probe(
        subject.frozen,
        _loaders(subject, config),
        config,
        seed=options.seed,
        every=options.every,
        out=options.out,
        identity={
            "checkpoint": subject.checkpoint.sha256,
            "images": [subject.train.fingerprint, subject.val.fingerprint],
            "size": subject.config.crop.size,
            "views": options.views,
            "tables": [sha256(path) if path else None for path in (options.table, options.val_table)],
        },
        progress=True,
    )
    if not is_main():
        return
    rows = _rows(subject, config, history)
    write_rows(options.json, rows, checkpoint=str(options.ckpt), data=str(subject.train.root))
    last = history[-1]
    top5 = "" if last.top5 is None else f", top-5 {100 * last.top5:.1f} %"
    estimate = ", cached features: an estimate" if options.cached else ""
    say(
        f"linear probe ({config.name}, {config.phase.epochs} epochs, {config.test_crop} test crop{estimate}):"
        f" top-1 {100 * last.top1:.1f} %{top5}"
    )


def _rows(subject: Subject, config: ProbeConfig, history: Sequence[Accuracy]) -> list[dict[str, Any]]:
    """One row of the JSON file per test."""
    options = subject.options
    return [
        {
            "protocol": "linear",
            "probe": config.name,
            "features": "cached" if options.cached else "augmented",
            "views": options.views,
            "layer": "backbone",
            "test_crop": config.test_crop,
            "probe_epochs": config.phase.epochs,
            "probe_epoch": test.epoch,
            "batch_size": config.batch_size,
            "lr": config.peak_lr,
            "weight_decay": config.weight_decay,
            "seed": options.seed,
            "epoch": subject.checkpoint.epoch,
            "top1": test.top1,
            "top5": test.top5,
            "images": test.images,
            "loss": test.loss,
        }
        for test in history
    ]


def _centre_fraction(text: str | None) -> float | str | None:
    if text is None or text == "whole":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise SagaError(f"--test-crop {text!r} must be a fraction in (0, 1] or 'whole'") from error


def _loaders(subject: Subject, config: ProbeConfig) -> ProbeLoaders:
    """Loaders of training crops and test crops; with ``--cached`` also of the training images in order."""
    size, options = subject.config.crop.size, subject.options
    assert subject.val is not None
    whole: Plan = WholePlan(size=size)
    if config.centre is not None:
        if not 0.0 < config.centre <= 1.0:
            raise SagaError(f"--test-crop {config.centre} must be in (0, 1]")
        whole = CentrePlan(size=size, fraction=config.centre)
    bad = BadImages(subject.train, max_fraction=subject.config.data.max_bad_fraction)
    table = None if options.views == "whole" else subject.table(subject.train)
    crops = CropPlan(
        size=size,
        seed=options.seed,
        num_views=2 if options.views == "both" else 1,
        scale=config.scale,
        table=table,
        views="mixed" if options.views == "both" else "att",
    )
    part = {"rank": rank(), "world_size": world_size()}
    train = subject.loader(subject.train, crops, shuffle=True, seed=options.seed, bad=bad, **part)
    cached = subject.loader(subject.train, subject.plan(subject.train, whole), bad=bad) if options.cached else None
    val = subject.loader(subject.val, subject.plan(subject.val, whole))
    return ProbeLoaders(train=train, val=val, cached=cached)
