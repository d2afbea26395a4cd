"""Everything that has to be shown on a GPU, in one run of less than 8 minutes.

Run it from a checkout as ``PYTHONPATH=. python benchmarks/gpu.py --out DIR``: it writes ``DIR/gpu.json`` and prints a
table. What fails in a section becomes a row with its error, the other sections still run, and the exit code is 1.
``--device cpu --small`` runs the same code at sizes that measure nothing, with Triton's kernels where TRITON_INTERPRET
is 1 and Numba's elsewhere.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import gpu_checks, gpu_kernels, gpu_models
from benchmarks.gpu_timing import Bench
from saga_fast.device import choose_device
from saga_fast.errors import SagaError
from saga_fast.profile.figures import Row, line, write

Section = Callable[[Bench], Iterator[Row]]
SECTIONS: dict[str, tuple[Section, float]] = {
    "checks": (gpu_checks.checks, 110.0),
    "copy": (gpu_kernels.time_copy, 5.0),
    "attention_boxes": (gpu_kernels.time_attention_boxes, 30.0),
    "crop_resize": (gpu_kernels.time_crop_resize, 20.0),
    "augment": (gpu_kernels.time_augment, 30.0),
    "bank_logits": (gpu_kernels.time_bank_logits, 25.0),
    "attention": (gpu_models.time_attention, 110.0),
    "training": (gpu_models.time_training, 60.0),
    "rebuild": (gpu_models.time_rebuild, 70.0),
}
"""Each with its budget in seconds; together 460. What is being measured at its end is still finished."""


def run_section(bench: Bench, name: str) -> Iterator[Row]:
    """The section's rows; an error, or the end of its time, is the last one."""
    section, budget = SECTIONS[name]
    begin = time.monotonic()
    bench.deadline = float("inf") if bench.small else begin + budget
    try:
        for row in section(bench):
            yield {**row, "section": name}
        gc.collect()
        if bench.cuda:
            torch.cuda.synchronize()  # what a kernel did wrong is this section's error, not the next one's
            torch.cuda.empty_cache()
    except Exception as error:  # whatever a machine or a driver comes up with: the other sections still run
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield {"name": f"section {name}", "error": reason, "section": name, "traceback": traceback.format_exc()}
    print(f"{name}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="these only, with commas between them")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that the script runs, measures nothing")
    parser.add_argument("--seed", type=int, help="of the random inputs; default: a fresh one")
    parser.add_argument("--commit", help="where git does not know: this is a copy of a checkout")
    arguments = parser.parse_args()
    names = arguments.sections.split(",")
    if not set(names) <= set(SECTIONS):
        parser.error(f"--sections {arguments.sections}: choose from {', '.join(SECTIONS)}")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if arguments.seed is None else arguments.seed
    try:
        bench = Bench(choose_device(arguments.device), arguments.small, seed)
    except SagaError as error:
        parser.error(str(error))
    rows: list[Row] = []
    for name in names:
        rows += run_section(bench, name)
        write(arguments.out / "gpu.json", rows, of_commit=arguments.commit)
    print(*map(line, rows), sep="\n")
    sys.exit(1 if any("error" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
