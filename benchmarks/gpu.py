"""Everything that has to be shown on a GPU, in one run of at most 6 minutes.

Run it from a checkout as ``PYTHONPATH=. python benchmarks/gpu.py --out DIR``: it writes ``DIR/gpu.json`` and prints a
table, row by row. Each section runs in a process with a time limit. One that fails or is killed keeps its rows and gets
a row with the error, the remaining sections still run, and the exit code is 1.

First the sections that time nothing run at the same time, and with them the first calls of the timed ones, which
compile their kernels; then the timed sections, one after the other. ``--device cpu --small`` runs the same code at
sizes that measure nothing, with Triton's kernels if TRITON_INTERPRET is 1 and Numba's otherwise.

DALI, FFCV and pytorch-grad-cam may be missing. ``benchmarks/gpu_bundle.sh`` packs what a machine without network lacks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks import (
    gpu_boxes,
    gpu_checks,
    gpu_commands,
    gpu_kernels,
    gpu_methods,
    gpu_models,
    gpu_product,
    gpu_rebuild,
    gpu_syncs,
)
from benchmarks.gpu_processes import Job, run_jobs, server_context
from benchmarks.gpu_timing import Bench
from benchmarks.scaffold import benchmark_parser, record
from saga_fast.errors import SagaError
from saga_fast.profile.figures import Row
from saga_fast.runtime.device import choose_device

TOGETHER = 74.0
"""Seconds for the sections that run at the same time."""


@dataclass(frozen=True)
class Section:
    """A section, and how it runs.

    Attributes:
        run: yields its rows.
        limit: seconds after which it is killed.
        timed: whether it needs the device for itself.
        compiles: whether its first calls are also made before, see :class:`Bench`.
    """

    run: Callable[[Bench], Iterator[Row]]
    limit: float = TOGETHER
    timed: bool = False
    compiles: bool = False


SECTIONS: dict[str, Section] = {
    "check_attention_boxes": Section(gpu_checks.check_attention_boxes),
    "check_crop_resize": Section(gpu_checks.check_crop_resize),
    "check_augment": Section(gpu_checks.check_augment),
    "check_bank_logits": Section(gpu_checks.check_bank_logits),
    "check_planes_to_rgb": Section(gpu_checks.check_planes_to_rgb),
    "decoder": Section(gpu_product.check_decoder),
    "commands": Section(gpu_commands.check_commands),
    "syncs": Section(gpu_syncs.count_syncs),
    "memory": Section(gpu_syncs.measure_memory),
    "compile_bf16": Section(partial(gpu_boxes.time_compiling, precision="bf16")),
    "compile_fp32": Section(partial(gpu_boxes.time_compiling, precision="fp32")),
    "copy": Section(gpu_kernels.time_copy, 4.0, timed=True),
    "attention_boxes": Section(gpu_kernels.time_attention_boxes, 15.0, timed=True, compiles=True),
    "crop_resize": Section(gpu_kernels.time_crop_resize, 8.0, timed=True, compiles=True),
    "augment": Section(gpu_kernels.time_augment, 10.0, timed=True, compiles=True),
    "planes_to_rgb": Section(gpu_kernels.time_planes_to_rgb, 3.0, timed=True, compiles=True),
    "bank_logits": Section(gpu_kernels.time_bank_logits, 6.0, timed=True, compiles=True),
    "boxes": Section(gpu_boxes.time_boxes, 69.0, timed=True),
    "rebuild": Section(gpu_rebuild.time_rebuild, 50.0, timed=True),
    "methods": Section(gpu_methods.time_methods, 43.0, timed=True, compiles=True),
    "attention": Section(gpu_models.time_attention, 22.0, timed=True, compiles=True),
    "decode": Section(gpu_rebuild.time_decoders, 20.0, timed=True),
    "engines": Section(gpu_product.time_engines, 36.0, timed=True),
}


def longest(sections: Sequence[Section]) -> float:
    """Seconds until the last of these sections is killed."""
    together = max((each.limit for each in sections if not each.timed or each.compiles), default=0.0)
    return max(together, TOGETHER) + sum(each.limit for each in sections if each.timed)


def run_sections(names: Sequence[str], job: Callable[..., Job], *, cuda: bool) -> Iterator[Row]:
    """The rows of these sections.

    Args:
        names: keys of SECTIONS.
        job: makes a job of a name, a function, a limit and whether it is a dry run.
        cuda: on a GPU the sections that time nothing run together; CPU sections do not share their cores.
    """
    context = server_context()
    chosen = {name: SECTIONS[name] for name in names}
    first = [
        job(name=name, run=section.run, limit=TOGETHER if section.timed else section.limit, dry=section.timed)
        for name, section in chosen.items()
        if not section.timed or (cuda and section.compiles)
    ]
    then = [job(name=name, run=each.run, limit=each.limit, dry=False) for name, each in chosen.items() if each.timed]
    # Compiling keeps one core busy per process; the checks' oracles and the loaders of the others use more.
    at_once = max(1, (os.cpu_count() or 1) - 1) if cuda else 1
    return chain(run_jobs(context, first, at_once=at_once), run_jobs(context, then, at_once=1))


def main() -> None:
    parser = benchmark_parser(__doc__, out="folder for gpu.json")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="these only, separated by commas")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that the script runs, measures nothing")
    parser.add_argument("--seed", type=int, help="of the random inputs; default: a fresh one")
    parser.add_argument("--commit", help="of a copy of a checkout, which git does not know")
    options = parser.parse_args()
    names = options.sections.split(",")
    if not set(names) <= set(SECTIONS):
        parser.error(f"--sections {options.sections}: choose from {', '.join(SECTIONS)}")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if options.seed is None else options.seed
    try:
        device = choose_device(options.device)
    except SagaError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        job = partial(Job, device=device.type, small=options.small, seed=seed, scratch=Path(scratch))
        rows = run_sections(names, job, cuda=device.type == "cuda")
        written = record(options.out / "gpu.json", rows, of_commit=options.commit)
    sys.exit(1 if any("error" in row for row in written) else 0)


if __name__ == "__main__":
    main()
