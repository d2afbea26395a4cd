"""``saga-fast reproduce``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saga_fast.cli.options import add_overrides, check_positive, user_path
from saga_fast.config_file import load_config
from saga_fast.configs import shipped_config
from saga_fast.demo.data import make_demo_data
from saga_fast.errors import SagaError
from saga_fast.evaluate.protocols import PROTOCOLS
from saga_fast.methods import METHODS
from saga_fast.reproduce.estimate import hours, measure_rates
from saga_fast.reproduce.plan import Reproduction, plan
from saga_fast.reproduce.results import write_results, write_runs_report
from saga_fast.reproduce.step import Step
from saga_fast.reproduce.targets import TARGETS
from saga_fast.runtime.address import is_address, public_address
from saga_fast.runtime.distributed import barrier, broadcast, is_main, world_size
from saga_fast.runtime.machine import hardware
from saga_fast.runtime.terminal import say

DEMO = "demo"


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "reproduce",
        help="the paper's tables and figures, each by one command",
        description="Run what a table or figure of the paper needs: plain training, fine-tuning, SAGA, supervised"
        " attention, and the evaluations; then print it as in the paper, beside the paper's numbers. Steps that are"
        " done are skipped, and a killed command that is run again goes on. table1 and fig3 share their runs.",
    )
    parser.add_argument("target", choices=tuple(TARGETS), help="which table or figure")
    parser.add_argument(
        "--data",
        default=DEMO,
        metavar="D",
        help="folder with train/ and val/ of ImageNet or ImageNet-100, as folders or .beton files; 'demo' (default):"
        " the demo's images and networks, in minutes",
    )
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="default: runs/reproduce/imagenet, .../imagenet100 or .../demo"
    )
    parser.add_argument("--methods", nargs="+", metavar="M", help="default: the paper's for this table or figure")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of runs; default: the paper's (5 for table2)")
    parser.add_argument(
        "--ckpt",
        action="append",
        default=[],
        metavar="METHOD=PT",
        help="a plain checkpoint, such as one of saga-fast import, in place of plain training",
    )
    parser.add_argument(
        "--classifier",
        type=user_path,
        metavar="PT",
        help="checkpoint of a classifier for supervised attention; default: one is trained",
    )
    parser.add_argument("--plus", action="store_true", help="also the recipe saga+, which the paper does not have")
    parser.add_argument(
        "--protocol", choices=tuple(PROTOCOLS), help="of the linear probe; default: moco, on the demo's images lightly"
    )
    parser.add_argument(
        "--cached",
        action="store_true",
        help="linear probes on cached features: fast estimates; always on the demo's images",
    )
    add_overrides(parser, text="override config values of each training")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and the predicted time, and stop")
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="time of each measurement for the prediction; default: %(default)s",
    )
    parser.set_defaults(run=run, distributed=True)


def run(options: argparse.Namespace) -> None:
    """Print the plan, run the steps that are left, and print the result."""
    check_positive(options, "seeds", "seconds")
    reproduction = _reproduction(options)
    if reproduction.data is None and is_main():
        generate = load_config(shipped_config("demo"), _of_images(options.overrides)).data.generate
        assert generate is not None
        make_demo_data(reproduction.out / "data", generate)
    barrier()
    steps = plan(reproduction)
    left = broadcast([number for number, step in enumerate(steps) if not step.is_done()])
    if is_main():
        _announce(steps, left, options)
    if options.dry_run:
        return
    for place, number in enumerate(left, start=1):
        if is_main():
            say(f"[{place}/{len(left)}] {steps[number].title}: {steps[number].command}")
        _run_command(steps[number].words)
        if is_main() and place < len(left):
            write_results(reproduction)
        barrier()
    if is_main():
        say(*write_results(reproduction), f"report: {write_runs_report(reproduction)}")


def _reproduction(options: argparse.Namespace) -> Reproduction:
    """
    Raises:
        SagaError: a method that the table does not have, or a malformed ``--ckpt``.
    """
    target = TARGETS[options.target]
    methods = tuple(options.methods or target.methods)
    if unknown := [method for method in methods if method not in target.methods]:
        raise SagaError(f"--methods {' '.join(unknown)}: {options.target} has {', '.join(target.methods)}")
    ckpts = {}
    for text in options.ckpt:
        method, _, path = text.partition("=")
        if method not in METHODS or not path:
            raise SagaError(f"--ckpt {text!r} must be METHOD=PT with a method of {', '.join(methods)}")
        ckpts[method] = user_path(path)
    if is_address(options.data):
        raise SagaError(f"--data {public_address(options.data)} is an address: name a folder with train/ and val/")
    data = None if options.data == DEMO else user_path(options.data)
    return Reproduction(
        name=options.target,
        target=target,
        out=options.out or Path("runs/reproduce") / (DEMO if data is None else target.configs),
        data=data,
        methods=methods,
        seeds=options.seeds or target.seeds,
        plain_ckpts=ckpts,
        classifier=options.classifier,
        with_plus=options.plus,
        overrides=tuple(options.overrides),
        protocol=options.protocol or ("lightly" if data is None else "moco"),
        cached=options.cached or data is None,
    )


def _of_images(overrides: Sequence[str]) -> list[str]:
    """The overrides that change the demo's images."""
    return [override for override in overrides if override.startswith("data.generate.")]


def _announce(steps: Sequence[Step], left: Sequence[int], options: argparse.Namespace) -> None:
    """Print the commands of a dry run, and the predicted time of the steps that are left."""
    if options.dry_run:
        say(*(("" if number in left else "# done: ") + step.command for number, step in enumerate(steps)))
    count = f"{options.target}: {len(steps)} steps, {len(steps) - len(left)} done"
    if not left:
        say(count)
    elif world_size() > 1:
        say(f"{count}; no prediction under torchrun: run --dry-run in one process")
    else:
        say(f"{count}; measuring the time of the others")
        say(f"{_duration(_predict([steps[number] for number in left], options.seconds))} left on {_machine()}")


def _predict(steps: Sequence[Step], seconds: float) -> float:
    """The predicted hours of steps."""
    configs = {step.config.method.name: step.config for step in reversed(steps)}
    return hours(steps, {name: measure_rates(config, seconds=seconds) for name, config in configs.items()})


def _machine() -> str:
    facts = hardware()
    return str(facts.get("gpu") or f"{facts['cores']} cores of an {facts['cpu']}")


def _duration(number: float) -> str:
    return f"{max(60 * number, 1.0):.0f} minutes" if number < 2.0 else f"{number:.0f} hours"


def _run_command(words: Sequence[str]) -> None:
    """Run a command of saga-fast in this process."""
    from saga_fast.cli import parse  # the commands' modules, this one too, are imported by name there

    options = parse(words)
    function: Callable[[argparse.Namespace], None] = options.run
    function(options)
