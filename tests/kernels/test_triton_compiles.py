"""All Triton kernels compile ahead of time for sm_80 and sm_90 without spills and with 16-byte reads.

The launches are recorded on meta tensors with the sizes of ImageNet training, so the test compiles what a GPU would
run. Registers and shared memory per block are printed as a table.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from saga_fast.kernels.crop_resize import ImageTable  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
BATCH, VIEWS, SIDE = 256, 2, 224
NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def compile(self, capability: int) -> Any:
        """Compile with a launch's specialisation: tensors and multiples of 16 are aligned, ones are constants."""
        names = self.kernel.arg_names
        options = {name: value for name, value in self.keywords.items() if name not in names}
        values = dict(zip(names, self.arguments, strict=False)) | self.keywords
        signature, constants, hints = {}, {}, {}
        for i, name in enumerate(names):
            value = values[name]
            aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
            if self.kernel.params[i].is_constexpr or (isinstance(value, int) and value == 1):
                signature[name], constants[(i,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
            if aligned and (i,) not in constants:
                hints[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, hints)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


class Recorder:
    """Replaces a kernel: records ``kernel[grid](...)`` instead of launching it."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(side <= 65535 for side in grid[1:])
        return lambda *arguments, **keywords: self.launches.append(Launch(self.kernel, arguments, keywords))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    recorded_launches: list[Launch] = []
    for op in ("attention_boxes", "augment", "crop_resize", "planes_to_rgb"):
        module = import_module(f"saga_fast.kernels.{op}._triton")
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                assert isinstance(value, JITFunction), "TRITON_INTERPRET is set: nothing can be compiled"
                monkeypatch.setattr(module, name, Recorder(value, recorded_launches))
    return recorded_launches


def new(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def boxes(batch: int, dtype: torch.dtype, last: bool, cells: int = 7, channels: int = 2048) -> None:
    op = import_module("saga_fast.kernels.attention_boxes._triton").attention_boxes_triton
    op(new(batch, channels, cells, cells, dtype=dtype, last=last), new(batch, channels), 0.7, SIDE, "minmax")


def crop(planar: bool) -> None:
    op = import_module("saga_fast.kernels.crop_resize._triton").crop_resize_triton
    shape = (BATCH, 3, 512, 500) if planar else (BATCH, 512, 500, 3)
    images = new(*shape, dtype=torch.uint8)
    table = ImageTable.of(images.permute(0, 2, 3, 1) if planar else images)
    op(table, new(BATCH, VIEWS, 4, dtype=torch.int32), SIDE, new(BATCH, VIEWS, dtype=torch.uint8))


def planes() -> None:
    op = import_module("saga_fast.kernels.planes_to_rgb._triton").planes_to_rgb_triton
    op(new(BATCH * (192 * 256 + 2 * 96 * 128), dtype=torch.uint8), np.tile([192, 256], (BATCH, 1)))


def augment(dtype: torch.dtype, last: bool, side: int = SIDE) -> None:
    op = import_module("saga_fast.kernels.augment._triton").augment_triton
    op(new(BATCH, VIEWS, side, side, 3, dtype=torch.uint8), new(BATCH, VIEWS, 13), *NORM, last, dtype)


CASES: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
    "boxes fp32": (boxes, (BATCH, torch.float32, False)),
    "boxes bf16": (boxes, (BATCH, torch.bfloat16, False)),
    "boxes bf16 channels_last": (boxes, (BATCH, torch.bfloat16, True)),
    "boxes bf16 B=32": (boxes, (32, torch.bfloat16, False)),
    "boxes bf16 14x14": (boxes, (BATCH, torch.bfloat16, False, 14)),
    "boxes fp32 14x14 tokens": (boxes, (BATCH, torch.float32, True, 14, 384)),
    "boxes bf16 28x28 tokens": (boxes, (64, torch.bfloat16, True, 28, 384)),
    "boxes fp16 odd": (boxes, (BATCH, torch.float16, False, 9, 1001)),
    "crop": (crop, (False,)),
    "crop planar": (crop, (True,)),
    "planes": (planes, ()),
    "augment fp32": (augment, (torch.float32, False)),
    "augment bf16 channels_last": (augment, (torch.bfloat16, True)),
    "augment fp16 odd": (augment, (torch.float16, False, 37)),
}


@pytest.mark.parametrize("name", CASES)
def test_no_spills(name: str, launches: list[Launch], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch, arguments = CASES[name]
    launch(*arguments)
    assert launches
    for recorded in launches:
        for capability in (80, 90):
            compiled = recorded.compile(capability)
            cubin = tmp_path / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
            match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
            assert match, usage
            registers, stack, local = map(int, match.groups())
            with capsys.disabled():
                line = f"{name:27}{recorded.kernel.__name__:20} sm_{capability} {registers:4} registers"
                sys.stdout.write(f"\n{line} {stack:2} B spilled {compiled.metadata.shared:6} B shared")
            assert (stack, local) == (0, 0)
            if recorded.kernel.__name__ in ("_sum_kernel", "_columns_kernel") and not name.endswith("odd"):
                reads = r"ld\.global\S*v4\.b32|cp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x10"
                assert re.search(reads, compiled.asm["ptx"]), "no 16-byte reads"
