"""Everything that has to be shown on a GPU, in one run of less than 8 minutes.

Run it from a checkout as ``PYTHONPATH=. python benchmarks/gpu.py --out DIR``: it writes ``DIR/gpu.json`` and prints a
table. What fails in a section becomes a row with its error, the remaining sections still run, and the exit code is 1.
``--device cpu --small`` runs the same code at sizes that measure nothing, with Triton's kernels if TRITON_INTERPRET is
1 and Numba's otherwise. It needs no more than torch, torchvision, timm, Numba, Pillow, safetensors, simplejpeg, tqdm
and psutil.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import gpu_checks, gpu_kernels, gpu_models, gpu_product, gpu_rebuild
from benchmarks.gpu_timing import Bench
from benchmarks.scaffold import benchmark_parser, record
from saga_fast.errors import SagaError
from saga_fast.profile.figures import Row
from saga_fast.runtime.device import choose_device

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
    "rebuild": (gpu_rebuild.time_rebuild, 70.0),
    "decoder": (gpu_product.check_decoder, 30.0),
    "engines": (gpu_product.time_engines, 60.0),
    "passes": (gpu_product.time_passes, 60.0),
}
"""Each with its budget in seconds; together 460. A measurement that has begun is finished."""


def run_section(bench: Bench, name: str) -> Iterator[Row]:
    """The section's rows; an error, or the end of its time, is the last row."""
    section, budget = SECTIONS[name]
    begin = time.monotonic()
    bench.deadline = float("inf") if bench.small else begin + budget
    try:
        for row in section(bench):
            yield row | {"section": name}
        gc.collect()
        if bench.cuda:
            torch.cuda.synchronize()  # a kernel's error is this section's, not the next one's
            torch.cuda.empty_cache()
    except Exception as error:  # of any machine or driver: the remaining sections still run
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield {"name": f"section {name}", "error": reason, "section": name, "traceback": traceback.format_exc()}
    print(f"{name}: {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)


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
        bench = Bench(choose_device(options.device), options.small, seed)
    except SagaError as error:
        parser.error(str(error))
    rows = (row for name in names for row in run_section(bench, name))
    written = record(options.out / "gpu.json", rows, of_commit=options.commit)
    sys.exit(1 if any("error" in row for row in written) else 0)


if __name__ == "__main__":
    main()
