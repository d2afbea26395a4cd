"""bank_logits against index_select, bmm and torch's autograd; its memory use and determinism.

Features and bank rows are unit vectors, as in the methods. The absolute values of each sample's incoming gradients sum
to 1, close to those of a softmax. A float32 sum of n products whose absolute values sum to at most 1 has an error of at
most n * 2^-24: 8e-6 at D 128 or M 129, and far less at a larger M, where errors mostly cancel.
"""

import itertools
import multiprocessing
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saga_fast.kernels import bank_logits
from saga_fast.kernels.bank_logits import _triton

NDArray = npt.NDArray[Any]
Arguments = tuple[NDArray, NDArray, NDArray, NDArray]
TOLERANCE = 1e-5
IMPLS = ("numba", "reference")
NUM_ROWS = 41
# 2500 logits are three chunks of the backward; 200 features are two of Triton's tiles.
SHAPES = [*itertools.product((1, 5), (1, 37, 129), (1, 3, 128)), (2, 2500, 5), (3, 70, 200)]


def draw(batch: int, count: int, width: int) -> Arguments:
    """Return features, bank, incoming gradients (float32) and indices, with repeats and both end rows."""
    generator = torch.Generator().manual_seed(1000 * batch + count + width)
    features = F.normalize(torch.randn(batch, width, generator=generator))
    bank = F.normalize(torch.randn(NUM_ROWS, width, generator=generator))
    grad = F.normalize(torch.randn(batch, count, generator=generator), p=1)
    idx = torch.randint(NUM_ROWS, (batch, count), generator=generator)
    idx[:, 0], idx[:, -1], idx[0, count // 2] = 0, NUM_ROWS - 1, NUM_ROWS - 1
    return features.numpy(), bank.numpy(), grad.numpy(), idx.numpy()


def by_bmm(features: torch.Tensor, bank: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Independent implementation that gathers the rows."""
    rows = bank.index_select(0, idx.flatten()).view(*idx.shape, -1)
    return torch.bmm(rows, features[:, :, None])[:, :, 0]


def with_gradient(
    impl: str,
    features: NDArray,
    bank: NDArray,
    grad: NDArray,
    idx: NDArray,
    dtype: torch.dtype = torch.float32,
    bank_dtype: torch.dtype = torch.float32,
) -> tuple[NDArray, NDArray]:
    """Return the logits and the features' gradient; features and bank are rounded to their dtypes first.

    "bmm" computes in float64 from the rounded values. NumPy in and out, so that a child process can run it.
    """
    leaf, rows = torch.from_numpy(features).to(dtype), torch.from_numpy(bank).to(bank_dtype)
    if impl == "bmm":
        leaf = leaf.double().requires_grad_()
        logits = by_bmm(leaf, rows.double(), torch.from_numpy(idx))
    else:
        logits = bank_logits(leaf.requires_grad_(), rows, torch.from_numpy(idx), impl=impl)
        assert logits.dtype == torch.float32
    logits.backward(torch.from_numpy(grad).to(logits.dtype))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype
    return logits.detach().double().numpy(), leaf.grad.double().numpy()


def assert_matches_bmm(
    actual: tuple[NDArray, NDArray],
    arguments: Arguments,
    dtype: torch.dtype = torch.float32,
    bank_dtype: torch.dtype = torch.float32,
) -> None:
    """Compare with TOLERANCE; a half-precision gradient may also differ by its rounding."""
    expected = with_gradient("bmm", *arguments, dtype, bank_dtype)
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    np.testing.assert_allclose(actual[0], expected[0], rtol=0.0, atol=TOLERANCE)
    np.testing.assert_allclose(actual[1], expected[1], rtol=rounding, atol=TOLERANCE)


def fresh_process() -> ProcessPoolExecutor:
    """Return a pool of one new Python process; its environment is the one at the first submit."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """Return a process with Triton's interpreter on, which must be set before Triton is imported."""
    with fresh_process() as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert process.submit(os.getenv, "TRITON_INTERPRET").result() == "1"
        yield process


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape: tuple[int, int, int], impl: str) -> None:
    arguments = draw(*shape)
    assert_matches_bmm(with_gradient(impl, *arguments), arguments)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_odd_shapes(shape: tuple[int, int, int], interpreter: ProcessPoolExecutor) -> None:
    arguments = draw(*shape)
    assert_matches_bmm(interpreter.submit(with_gradient, "triton", *arguments).result(), arguments)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_features(dtype: torch.dtype, impl: str) -> None:
    arguments = draw(5, 37, 128)
    assert_matches_bmm(with_gradient(impl, *arguments, dtype), arguments, dtype)


@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_triton_halves(dtype: torch.dtype, bank_dtype: torch.dtype, interpreter: ProcessPoolExecutor) -> None:
    """Sums are in float32 for all dtypes."""
    arguments = draw(5, 37, 128)
    actual = interpreter.submit(with_gradient, "triton", *arguments, dtype, bank_dtype).result()
    assert_matches_bmm(actual, arguments, dtype, bank_dtype)


def triton_unchecked(features: NDArray, bank: NDArray, grad: NDArray, idx: NDArray) -> tuple[NDArray, NDArray]:
    """Run forward and backward without the index check, as on a GPU."""
    f, rows, g, indices = (torch.from_numpy(array) for array in (features, bank, grad, idx))
    logits = _triton.bank_logits_triton(f, rows, indices)
    return logits.numpy(), _triton.bank_logits_backward_triton(g, rows, indices).numpy()


def test_triton_marks_indices_outside_the_bank(interpreter: ProcessPoolExecutor) -> None:
    """They read nothing and give NaN; the remaining logits are unchanged."""
    arguments = draw(5, 37, 3)
    expected = with_gradient("bmm", *arguments)[0]
    arguments[3][0, 3], arguments[3][4, 0], arguments[3][2, 36] = -1, NUM_ROWS, 1 << 60
    expected[0, 3] = expected[4, 0] = expected[2, 36] = np.nan
    logits, grad = interpreter.submit(triton_unchecked, *arguments).result()
    np.testing.assert_allclose(logits, expected, rtol=0.0, atol=TOLERANCE)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_in_float64(impl: str) -> None:
    features, bank, _, idx = draw(3, 7, 5)
    rows, indices = torch.from_numpy(bank).double(), torch.from_numpy(idx)
    leaf = torch.from_numpy(features).double().requires_grad_()
    assert bank_logits(leaf, rows, indices, impl=impl).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda f: bank_logits(f, rows, indices, impl=impl), leaf)


def test_any_strides() -> None:
    """Features, indices and the incoming gradient may be strided or expanded; only the bank may not."""
    features, bank, grad, idx = draw(5, 37, 3)
    grad[:] = 1 / 37
    leaf = torch.from_numpy(np.repeat(features, 2, 1)[:, ::2]).requires_grad_()
    logits = bank_logits(leaf, torch.from_numpy(bank), torch.from_numpy(np.repeat(idx, 2, 1)[:, ::2]))
    (gradient,) = torch.autograd.grad(logits.sum() / 37, leaf)
    assert_matches_bmm((logits.detach().numpy(), gradient.numpy()), (features, bank, grad, idx))


def test_same_bits_for_any_number_of_threads() -> None:
    arguments = draw(5, 2500, 128)
    parallel = with_gradient("numba", *arguments)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        serial = with_gradient("numba", *arguments)
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(parallel[0], serial[0])
    np.testing.assert_array_equal(parallel[1], serial[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_numpy_in_numpy_out(impl: str) -> None:
    features, bank, _, idx = arguments = draw(5, 37, 3)
    logits = bank_logits(features, bank, idx, impl=impl)
    assert isinstance(logits, np.ndarray) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, with_gradient("bmm", *arguments)[0], rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("batch", "count"), [(0, 7), (5, 0)])
def test_empty(batch: int, count: int, impl: str) -> None:
    leaf = torch.ones(batch, 3, requires_grad=True)
    logits = bank_logits(leaf, torch.ones(4, 3), torch.zeros(batch, count, dtype=torch.int64), impl=impl)
    assert logits.shape == (batch, count)
    (grad,) = torch.autograd.grad(logits.sum(), leaf)
    torch.testing.assert_close(grad, torch.zeros(batch, 3), rtol=0.0, atol=0.0)


def test_backward_refuses_an_updated_bank() -> None:
    """Otherwise the gradient would be computed from the new rows."""
    features, bank, _, idx = (torch.from_numpy(array) for array in draw(5, 37, 3))
    logits = bank_logits(features.requires_grad_(), bank, idx)
    bank[0] += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.ones(5)}, r"features must be \(B, D\).* got \(5,\)"),
        ({"idx": torch.zeros(5, dtype=torch.int64)}, r"idx \(B, M\)"),
        ({"features": torch.ones(5, 4)}, r"agree on B and D, got \(5, 4\), \(41, 3\) and \(5, 7\)"),
        ({"features": torch.ones(4, 3)}, r"agree on B and D, got \(4, 3\)"),
        ({"features": torch.ones(5, 3, dtype=torch.int32)}, "floating point and idx int64, got torch.int32"),
        ({"idx": torch.zeros(5, 7, dtype=torch.int32)}, "idx int64, got .* torch.int32"),
        ({"idx": torch.zeros(5, 7, dtype=torch.uint64)}, "idx int64, got .* torch.uint64"),
        ({"idx": torch.full((5, 7), -1)}, r"idx must be in \[0, 41\), got -1"),
        ({"idx": torch.full((5, 7), 41)}, r"idx must be in \[0, 41\), got 41"),
        ({"bank": torch.ones(0, 3)}, r"idx must be in \[0, 0\), got 0"),
        ({"bank": torch.ones(41, 3, requires_grad=True)}, "bank must not require a gradient"),
        ({"bank": torch.ones(3, 41).T}, "must be contiguous"),
        ({"bank": torch.ones(41, 3, dtype=torch.bfloat16)}, "float32 or float64 on the CPU, got torch.bfloat16"),
        ({"bank": torch.ones(41, 3, device="meta")}, r"one device, got \['cpu', 'meta'\]"),
        ({"impl": "triton"}, "'triton'"),
        ({"impl": "cuda"}, "impl must be one of .*, got 'cuda'"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    valid = {"features": torch.ones(5, 3), "bank": torch.ones(41, 3), "idx": torch.zeros(5, 7, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        bank_logits(**{**valid, **changes})


def peak_of_forward_and_backward() -> tuple[int, int, int]:
    """Return the peak growth of resident memory, the size of the inputs and of the outputs, in bytes."""
    features, bank, idx = torch.randn(16, 128), torch.randn(65536, 128), torch.randint(65536, (16, 16385))
    grad = torch.randn(16, 16385)
    features.requires_grad_()
    # Warm-up: compiles the kernels, and torch's first backward imports 38 MB of Python modules.
    torch.autograd.grad(bank_logits(features[:1], bank, idx[:1, :5]), features, grad[:1, :5])
    Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak

    def status(field: str) -> int:
        return next(int(x.split()[1]) * 1024 for x in Path("/proc/self/status").open() if x.startswith(field))

    before = status("VmRSS")
    logits = bank_logits(features, bank, idx)
    (grad_features,) = torch.autograd.grad(logits, features, grad)
    growth = status("VmHWM") - before
    return growth, sum(x.nbytes for x in (features, bank, idx, grad)), logits.nbytes + grad_features.nbytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of peak memory")
def test_peak_memory() -> None:
    """Peak memory is under 1.2 times the inputs and outputs; gathered rows would need 3 times."""
    with fresh_process() as process:
        growth, inputs, outputs = process.submit(peak_of_forward_and_backward).result()
    assert outputs <= growth + 4096
    assert inputs + growth < 1.2 * (inputs + outputs)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [3, 128, 200])
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_without_spills(arch: int, width: int, dtype: str, tmp_path: Path) -> None:
    forward = (_triton.forward_kernel, dtype, _triton.CHUNK, _triton.TILE)
    backward = (_triton.backward_kernel, "fp32", _triton.GRAD_CHUNK, _triton.GRAD_TILE)
    for kernel, first, chunk, elements in (forward, backward):
        types = [f"*{first}", f"*{dtype}", "*i64", "*fp32", "i32", "i32", "i32"]
        tile_m, tile_d = _triton.tile(width, elements)
        sizes = {"CHUNK": chunk, "TILE_M": tile_m, "TILE_D": tile_d, "TILES_D": -(-width // tile_d)}
        constants = {name: sizes[name] for name in kernel.arg_names[len(types) :]}
        signature = dict(zip(kernel.arg_names, types + ["constexpr"] * len(constants), strict=True))
        aligned = [0, 1, 2, 3] + [6] * (width % 16 == 0)  # torch's pointers, and a width divisible by 16
        source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
        compiled = triton.compile(
            source, target=GPUTarget("cuda", arch, 32), options=_triton.FUSION | {"num_warps": _triton.WARPS}
        )
        (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", tmp_path / "cubin"]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert re.findall(r"(?:STACK|LOCAL):\d+", usage) == ["STACK:0", "LOCAL:0"]
