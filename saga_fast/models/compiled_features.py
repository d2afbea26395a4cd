"""The compiled forward pass of encoders whose weights do not change for a while."""

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

from saga_fast.errors import SagaError
from saga_fast.models.encoder import Activations, Encoder
from saga_fast.models.modes import eval_mode
from saga_fast.models.precision import Precision, autocast

Forward = Literal["auto", "eager", "compiled"]

EAGER_RATE = 1e11
"""Floating-point operations per second and thread of convolutions in eager mode, on a Xeon with AVX-512."""
COMPILED_FROM = 100.0
"""Seconds of eager forward passes, at EAGER_RATE, from which ``auto`` compiles on the CPU: on two cores compiling pays
after 60 s (ResNet-50 at 224 px, ResNet-18 at 64 px; benchmarks/results/bench_attention.json)."""


def choose_forward(
    requested: Forward, encoders: Sequence[Encoder], *, images: int, size: int
) -> Literal["eager", "compiled"]:
    """``requested``, with ``auto`` resolved for a pass of ``images`` images of ``size`` px through the encoders.

    The choice depends on the arguments, on torch's number of threads and on whether there is a C++ compiler, never on a
    measured time: a pass that is repeated, or shared among processes, takes the same path and rounds alike. On a GPU
    ``auto`` is eager: compiling ResNet-50 takes 11 to 27 s per pass on an H200 and saves 7 ms per 256 images (9.4 in
    place of 16.5), which pays only where images are loaded faster than the eager pass takes them, 15,000 images/s.

    Raises:
        SagaError: ``compiled`` on a CPU without a C++ compiler, or for another project's model.
    """
    if not all(encoder.can_compile for encoder in encoders):
        if requested == "compiled":
            raise SagaError("attention.forward=compiled is for saga-fast's encoders, not for a FeatureModel: use eager")
        return "eager"
    on_cpu = next(encoders[0].parameters()).device.type == "cpu"
    can_compile = not on_cpu or _has_cpp_compiler()
    if requested == "compiled" and not can_compile:
        raise SagaError("attention.forward=compiled needs a C++ compiler on the CPU: install g++ or set CXX")
    if requested != "auto":
        return requested
    if not (on_cpu and can_compile):
        return "eager"
    seconds = images * flops(encoders, size) / (EAGER_RATE * torch.get_num_threads())
    return "compiled" if seconds > COMPILED_FROM else "eager"


def flops(encoders: Sequence[Encoder], size: int) -> int:
    """Floating-point operations of one image's forward pass; a multiplication and an addition are two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for encoder in encoders:
            device = next(encoder.parameters()).device
            with eval_mode(encoder):
                encoder.features(torch.zeros(1, encoder.in_channels, size, size, device=device))
    return int(counter.get_total_flops())


@contextmanager
def compiled_features(encoders: Sequence[Encoder], *, batch_size: int, precision: Precision) -> Iterator[None]:
    """Within the block ``encoder.activations`` is compiled, for batches of exactly ``batch_size`` images.

    TorchInductor folds batch norm into the convolutions, and on the CPU lays the weights out as oneDNN wants them. An
    encoder is compiled at its first such batch with the weights of that moment, which must not change within the block.
    Gradients do not flow.

    Args:
        encoders: in eval mode, on one device.
        batch_size: images of a whole batch. The last batch of a pass, if it is smaller, runs in eager mode.
        precision: autocast type of the compiled pass.
    """
    with ExitStack() as stack:
        for encoder in encoders:
            encoder.compiled = _CompiledFeatures(encoder, batch_size, precision)
            stack.callback(setattr, encoder, "compiled", None)
        yield


class _CompiledFeatures:
    """``encoder.activations`` for inputs of one shape and memory format."""

    def __init__(self, encoder: Encoder, batch_size: int, precision: Precision) -> None:
        self._encoder, self._batch_size, self._precision = encoder, batch_size, precision
        self._network: nn.Module | None = None

    def __call__(self, images: Tensor) -> Activations | None:
        """Activations of (batch_size, channels, S, S); None for other batch sizes."""
        if len(images) != self._batch_size:
            return None
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            if self._network is None:
                self._network = self._compile(images)
            return Activations(*self._network(images))

    def _compile(self, images: Tensor) -> nn.Module:
        network = _Activations(self._encoder, self._precision).eval()
        with torch._inductor.config.patch(freezing=True, compile_threads=1):
            # Exported first: torch.compile caches by the place in the code, so a second module compiled at the same
            # place would be compiled again, and after some renewals not at all.
            graph = torch.export.export(network, (images,)).module()
            compiled: nn.Module = torch.compile(graph, dynamic=False)  # type: ignore[assignment]
            compiled(images)
        return compiled


class _Activations(nn.Module):
    def __init__(self, encoder: Encoder, precision: Precision) -> None:
        super().__init__()
        self.encoder, self.precision = copy.deepcopy(encoder), precision
        self.encoder.compiled = None

    def forward(self, images: Tensor) -> tuple[Tensor | None, ...]:
        with autocast(images.device, self.precision):
            return tuple(self.encoder.activations(images))


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
