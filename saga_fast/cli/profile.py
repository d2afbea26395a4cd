"""``saga-fast profile``: the bottleneck on this machine, and the best loader options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from saga_fast.checkpoint import checkpoint_config, load_model, read_checkpoint
from saga_fast.cli.options import (
    add_config,
    add_device,
    add_engine,
    add_loading,
    add_overrides,
    add_places,
    check_outputs,
    check_positive,
    chosen_config,
    chosen_source,
    loader_options,
    user_location,
    user_path,
)
from saga_fast.configs import find_config
from saga_fast.errors import SagaError
from saga_fast.loaders import ENGINES, WholePlan, engines_for, open_loader
from saga_fast.profile.att import AttProfile, profile_att
from saga_fast.profile.figures import Row, line, write
from saga_fast.profile.kernels import profile_kernels
from saga_fast.profile.loaders import LoadersProfile, describe_bottleneck, profile_loaders, recommend
from saga_fast.profile.rebuild import Cluster, predict
from saga_fast.profile.train import profile_train
from saga_fast.runtime.address import public_address
from saga_fast.runtime.device import choose_device
from saga_fast.runtime.terminal import say
from saga_fast.runtime.threads import usable_cores


def add_parser(subparsers: Any) -> None:
    """Add the command and its subjects."""
    parser = subparsers.add_parser(
        "profile",
        help="throughput of each stage, compared with its limit",
        description="Measure each stage on this machine, compare it with its limit, and print the bottleneck.",
    )
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    _add_loaders(subjects)
    _add_att(subjects)
    _add_train(subjects)
    _add_kernels(subjects)


def _add_measuring(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    text = "approximate time per row; default: %(default)s"
    parser.add_argument("--seconds", type=float, default=seconds, metavar="S", help=text)
    parser.add_argument("--json", type=user_path, metavar="F", help="write the rows to this file")


def _add_loaders(subjects: Any) -> None:
    parser = subjects.add_parser(
        "loaders",
        help="engines, thread counts and batch sizes for these images",
        description="Each engine, thread count and batch size, compared with reading and decoding alone.",
    )
    parser.add_argument(
        "--data", type=user_location, nargs="+", required=True, metavar="SRC", help="folders of images, .beton files"
    )
    parser.add_argument("--engine", nargs="+", metavar="E", help="default: all engines that can read SRC")
    parser.add_argument("--size", type=int, default=224, metavar="S", help="side of the views; default: %(default)s")
    parser.add_argument("--views", type=int, default=2, metavar="V", help="views per image; default: %(default)s")
    parser.add_argument("--threads", type=int, nargs="+", metavar="N", help="default: all cores")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64], metavar="B", help="default: 64")
    parser.add_argument(
        "--prefetch", type=int, default=2, metavar="P", help="batches loaded ahead; default: %(default)s"
    )
    add_places(parser)
    add_device(parser)
    _add_measuring(parser, seconds=5.0)
    parser.set_defaults(run=run_loaders)


def _add_att(subjects: Any) -> None:
    parser = subjects.add_parser(
        "att",
        help="the attention pass, compared with a bare forward loop, and the predicted time of a rebuild",
        description="The attention pass, compared with a bare forward loop, and the predicted time of a rebuild of"
        " D^att.",
    )
    parser.add_argument("--ckpt", type=user_path, required=True, metavar="PT", help="a saga-fast checkpoint")
    parser.add_argument(
        "--data", type=user_location, metavar="SRC", help="images; default: the checkpoint's training images"
    )
    add_loading(parser)
    parser.add_argument(
        "--images", type=int, metavar="N", help="number of images of the predicted rebuild; default: that of SRC"
    )
    parser.add_argument("--gpus", type=int, default=1, metavar="G", help="GPUs per machine; default: %(default)s")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="machines; default: %(default)s")
    text = "network between machines (not measured); default: %(default)s"
    parser.add_argument("--gbit-per-second", type=float, default=10.0, metavar="R", help=text)
    _add_measuring(parser, seconds=10.0)
    parser.set_defaults(run=run_att)


def _add_train(subjects: Any) -> None:
    parser = subjects.add_parser(
        "train",
        help="training, compared with the loader alone and the step alone",
        description="Training with a config, compared with the loader alone and the step alone. No run folder is"
        " written.",
    )
    add_config(parser)
    add_engine(parser, default="the config's")
    add_overrides(parser, text="override config values")
    _add_measuring(parser, seconds=10.0)
    parser.set_defaults(run=run_train)


def _add_kernels(subjects: Any) -> None:
    parser = subjects.add_parser(
        "kernels",
        help="each kernel, compared with a copy of as many bytes",
        description="Each kernel on this machine, compared with a copy of as many bytes.",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, metavar="S", help="side of the views; default: %(default)s")
    parser.add_argument(
        "--repeats", type=int, default=9, metavar="R", help="calls of each kernel; default: %(default)s"
    )
    add_device(parser)
    parser.add_argument("--json", type=user_path, metavar="F", help="write the rows to this file")
    parser.set_defaults(run=run_kernels)


def run_loaders(options: argparse.Namespace) -> None:
    """Measure, and print the bottleneck and the best options."""
    check_positive(options, "seconds", "size", "views", "batch_size", "threads")
    check_outputs([options.json], options.data)
    engines = options.engine or list(ENGINES)
    data = [(engine, path) for path in options.data for engine in engines_for(path) if engine in engines]
    if not data:
        names = ", ".join(public_address(path) for path in options.data)
        raise SagaError(f"none of the engines {', '.join(engines)} reads {names}")
    profile = LoadersProfile(
        data=data,
        size=options.size,
        num_views=options.views,
        threads=options.threads or [usable_cores()],
        batch_sizes=options.batch_size,
        prefetch=options.prefetch,
        seconds=options.seconds,
        device=choose_device(options.device),
        decode=options.decode,
        crop=options.crop,
    )
    rows = _print_rows(profile_loaders(profile), total=profile.combinations, json=options.json)
    best = recommend(rows)
    if best is None:
        raise SagaError("no engine could read the images, see above")
    say("", describe_bottleneck(rows), f"choose: --set {best}")


def run_att(options: argparse.Namespace) -> None:
    """Measure, and print and write the predicted time of a rebuild."""
    check_positive(options, "seconds", "batch_size", "threads", "images", "gpus", "nodes", "gbit_per_second")
    check_outputs([options.json], [options.ckpt, options.data])
    config = checkpoint_config(read_checkpoint(options.ckpt), options.ckpt)
    attention_pass, loading = config.attention_pass, loader_options(options)
    engine, source = chosen_source(options, config.data)
    device = torch.device(loading.device)
    loader = open_loader(engine, source, WholePlan(size=attention_pass.size), loading)
    images = options.images or len(loader.source)
    profile = AttProfile(
        model=load_model(options.ckpt).to(device),
        loader=loader,
        attention_pass=attention_pass,
        images=images,
        seconds=options.seconds,
    )
    rows = _print_rows(profile_att(profile))
    cluster = Cluster(
        gpus=options.gpus, nodes=options.nodes, on_gpu=device.type == "cuda", gbit_per_second=options.gbit_per_second
    )
    prediction = predict(rows, images=images, cluster=cluster)
    compiling = next((row for row in rows if row["name"] == "compile"), None)
    if compiling is not None and compiling["breaks_even"] is not None:
        say("", f"compiling the forward pass saves time from {compiling['breaks_even']} images on")
    say(
        "",
        f"rebuild of {images} images with {_count(options.gpus, 'GPU')} on {_count(options.nodes, 'machine')}:"
        f" {_duration(prediction.seconds)} at {prediction.images_per_second:.0f} images/s; the bottleneck is"
        f" {prediction.bottleneck}",
    )
    if options.json:
        row: Row = {
            "name": "predicted rebuild",
            "seconds": prediction.seconds,
            "limit": prediction.seconds,
            "ratio": 1.0,
            "against": "itself",
            "images": images,
            "gpus": options.gpus,
            "nodes": options.nodes,
            "bottleneck": prediction.bottleneck,
        }
        write(options.json, [*rows, row])


def run_train(options: argparse.Namespace) -> None:
    """Measure, and print whether the loader or the step is the bottleneck."""
    check_positive(options, "seconds")
    check_outputs([options.json], [find_config(options.config)])
    rows = _print_rows(profile_train(chosen_config(options), seconds=options.seconds), total=3, json=options.json)
    train = rows[-1]
    say("", f"the {train['against']} is the bottleneck: training reaches {train['ratio']:.2f} of its rate")


def run_kernels(options: argparse.Namespace) -> None:
    """Measure each kernel."""
    check_positive(options, "batch_size", "size", "repeats")
    check_outputs([options.json], [])
    device = choose_device(options.device)
    rows = profile_kernels(device, batch_size=options.batch_size, size=options.size, repeats=options.repeats)
    _print_rows(rows, total=6, json=options.json)


def _print_rows(rows: Iterable[Row], *, total: int | None = None, json: Path | None = None) -> list[Row]:
    """Print each row when it is measured, with a progress bar, and write all rows to ``json``.

    Args:
        rows: rows that are measured one by one.
        total: their number, if known.
        json: the file to write; None: no file.

    Returns:
        The rows.
    """
    measured = []
    with tqdm(rows, total=total, desc="profile", unit="row", disable=None) as bar:
        for row in bar:
            measured.append(row)
            with tqdm.external_write_mode():
                say(line(row))
    if json is not None:
        write(json, measured)
    return measured


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200.0 else f"{seconds / 3600:.1f} h"
