"""The forward pass of encoders that do not change for a while: compiled, their weights constants."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saga_fast.encoder import Encoder
from saga_fast.errors import SagaError
from saga_fast.methods import Method
from saga_fast.precision import Precision, autocast

Forward = Literal["auto", "eager", "compiled"]

EAGER_RATE = 1e11
"""Floating-point operations per second and thread of convolutions in eager mode, on a Xeon with AVX-512."""
COMPILED_FROM = 100.0
"""Seconds of eager forward passes, by that rate, from which compiling is the default on the CPU: on two cores it has
paid for itself after about 60 (ResNet-50 at 224, ResNet-18 at 64), see benchmarks/results/bench_attention.json."""


def chosen_forward(wanted: Forward, model: Method, *, images: int, size: int) -> Literal["eager", "compiled"]:
    """What ``auto`` means for ``images`` forward passes of ``size`` px by a model, on this machine.

    It follows from the arguments, the number of torch's threads and whether there is a C++ compiler, never from a
    clock: a pass that is repeated, or shared among processes, takes the same path and rounds alike. On a GPU ``auto``
    is eager, since nobody has measured compiling there yet.

    Raises:
        SagaError: compiled is wanted on a CPU, and there is no C++ compiler.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    can = not on_cpu or _has_cpp_compiler()
    if wanted == "compiled" and not can:
        raise SagaError("attention.forward=compiled needs a C++ compiler on the CPU: install g++ or set CXX")
    if wanted != "auto":
        return wanted
    if not (on_cpu and can):
        return "eager"
    seconds = images * flops(model, size) / (EAGER_RATE * torch.get_num_threads())
    return "compiled" if seconds > COMPILED_FROM else "eager"


def encoders_of(model: Method, size: int) -> list[Encoder]:
    """The encoders that the attention pass runs: one, but for CMC."""
    return [branch.encoder for branch in model.branches(_image(model, size))]


def flops(model: Method, size: int) -> int:
    """Floating-point operations of one image's forward pass; a multiplication and an addition are two."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for branch in model.branches(_image(model, size)):
            branch.encoder.features(branch.images)
    model.train(was_training)
    return int(counter.get_total_flops())


def _image(model: Method, size: int) -> Tensor:
    return torch.zeros(1, 3, size, size, device=next(model.parameters()).device)


@contextmanager
def compiled(encoders: Sequence[Encoder], *, batch_size: int, precision: Precision) -> Iterator[None]:
    """Within the block ``encoder.features`` of these is compiled, for batches of ``batch_size`` images and no others.

    TorchInductor folds batch norm into the convolutions, and on the CPU lays the weights out as oneDNN wants them. An
    encoder is compiled when its first such batch comes, as it is at that moment: its weights must not change within the
    block. Gradients do not flow.

    Args:
        encoders: in eval mode, on one device.
        batch_size: of whole batches. The last one of a pass, which is smaller, runs as it would outside of the block.
        precision: autocast type of the compiled pass.
    """
    with ExitStack() as stack:
        for encoder in encoders:
            encoder.compiled = CompiledFeatures(encoder, batch_size, precision)
            stack.callback(setattr, encoder, "compiled", None)
        yield


class CompiledFeatures:
    """``encoder.features`` for inputs of one shape and memory format: see :func:`compiled`."""

    def __init__(self, encoder: Encoder, batch_size: int, precision: Precision) -> None:
        self._encoder, self._batch_size, self._precision = encoder, batch_size, precision
        self._run: nn.Module | None = None

    def fits(self, images: Tensor) -> bool:
        """Whether this is a whole batch."""
        return len(images) == self._batch_size

    def __call__(self, images: Tensor) -> Tensor:
        """Last activations A: (batch_size, 3, S, S) -> (batch_size, C, u, v)."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if self._run is None:
                self._run = self._compile(images)
            found: Tensor = self._run(images)
        return found

    def _compile(self, images: Tensor) -> nn.Module:
        network = _Features(self._encoder, self._precision).eval()
        with torch._inductor.config.patch(freezing=True, compile_threads=1):
            # Exported, because a compiled module of the same code would be compiled again in the same place, and after
            # some renewals not at all.
            graph = torch.export.export(network, (images,)).module()
            run: nn.Module = torch.compile(graph, dynamic=False)  # type: ignore[assignment]
            run(images)
        return run


class _Features(nn.Module):
    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        super().__init__()
        self.encoder, self.precision = copy.deepcopy(encoder), precision
        self.encoder.compiled = None

    def forward(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.precision):
            return self.encoder.features(images)


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
