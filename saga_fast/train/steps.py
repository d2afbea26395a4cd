"""The steps of an epoch under way: their figures, and what a loss that is not finite leads to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from saga_fast.distributed import gather, mean, world_size
from saga_fast.errors import SagaError
from saga_fast.methods import Method, StepOutput

CHECK_EVERY = 50
"""Steps between two looks at the losses. Each waits for the GPU, some milliseconds in some seconds."""


class NonFiniteLossError(SagaError):
    """A loss, or the gradient of a finite one, is infinite or not a number.

    Attributes:
        what: which of them.
        step: of the epoch, from 0.
        indices: the images of its batch.
        value: the loss.
    """

    def __init__(self, step: int, indices: list[int], value: float) -> None:
        self.what = "gradient" if math.isfinite(value) else "loss"
        super().__init__(f"the {self.what} of step {step} is not finite: loss {value}")
        self.step, self.indices, self.value = step, indices, value


class Steps:
    """Losses and similarities of an epoch's steps, (steps,) float32 on the device, and the time they took.

    A process's own figures become the means over all processes when they are settled, and only then are they looked at.

    Attributes:
        done: steps done, those of an earlier run that began this epoch among them.
        skipped: steps skipped in the epoch.
    """

    def __init__(self, count: int, model: Method, *, so_far: Mapping[str, Any] | None) -> None:
        self._weights = list(model.parameters())
        device = self._weights[0].device
        self.losses, self.similarities = torch.zeros(count, device=device), torch.zeros(count, device=device)
        self.done, self.skipped, self.images = 0, 0, 0
        self.seconds, self.waited = 0.0, 0.0
        if so_far:
            self.done, self.skipped, self.images = so_far["done"], so_far["skipped"], so_far["images"]
            self.seconds, self.waited = so_far["seconds"], so_far["waited"]
            self.losses[: self.done], self.similarities[: self.done] = so_far["losses"], so_far["similarities"]
        self._settled = self.done
        self._indices: list[Tensor] = []  # of the steps not yet settled
        self._left_out: list[int] = []  # of these, those that were skipped

    def add(self, output: StepOutput, index: Tensor) -> None:
        """A step was made. Now and then its and the last steps' losses are looked at, see :meth:`settle`."""
        self.losses[self.done], self.similarities[self.done] = output.loss.detach(), output.positive_similarity
        self._indices.append(index)
        self._count(index)
        if self.done - self._settled == CHECK_EVERY:
            self.settle()

    def skip(self, index: Tensor) -> None:
        """A step was not made, because of its loss."""
        self.losses[self.done] = self.similarities[self.done] = torch.nan
        self.skipped += 1
        self._left_out.append(self.done - self._settled)
        self._indices.append(index)
        self._count(index)

    def _count(self, index: Tensor) -> None:
        self.done += 1
        self.images += world_size() * len(index)

    def settle(self) -> None:
        """Take the means over all processes of what is new, and look at the losses, and at the weights.

        A step's gradient may not be finite though its loss is. The next loss tells, but the next may come after a
        checkpoint.

        Raises:
            NonFiniteLossError: on every process alike.
        """
        new = slice(self._settled, self.done)
        both = mean(torch.stack([self.losses[new], self.similarities[new]]))
        self.losses[new], self.similarities[new] = both
        wrong = both[0].isfinite().logical_not()
        wrong[self._left_out] = False
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0, 0])
            indices = gather(self._indices[at]).tolist()
            raise NonFiniteLossError(self._settled + at, indices, float(both[0][at]))
        largest = torch.nn.utils.get_total_norm(self._weights, math.inf)
        if self._indices and not bool(mean(largest[None]).isfinite()):
            raise NonFiniteLossError(self.done - 1, gather(self._indices[-1]).tolist(), float(both[0][-1]))
        self._settled = self.done
        self._indices.clear()
        self._left_out.clear()

    def state(self) -> dict[str, Any]:
        """For a checkpoint. What is new is settled first.

        Raises:
            NonFiniteLossError: see :meth:`settle`; what came of such a loss is not to be saved.
        """
        self.settle()
        return {
            "done": self.done,
            "skipped": self.skipped,
            "images": self.images,
            "seconds": self.seconds,
            "waited": self.waited,
            "losses": self.losses[: self.done].cpu(),
            "similarities": self.similarities[: self.done].cpu(),
        }


class Undo:
    """What a forward pass in train mode changes, kept to be put back: batch-norm statistics and key encoders."""

    def __init__(self, model: Method) -> None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._changing = [buffer for norm in norms for buffer in norm.buffers()]
        self._changing += [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._kept = [torch.empty_like(tensor) for tensor in self._changing]

    @torch.no_grad()
    def keep(self) -> None:
        """Before the forward pass."""
        for kept, tensor in zip(self._kept, self._changing, strict=True):
            kept.copy_(tensor)

    @torch.no_grad()
    def put_back(self) -> None:
        """After one that came to nothing."""
        for kept, tensor in zip(self._kept, self._changing, strict=True):
            tensor.copy_(kept)


def is_finite(loss: Tensor, model: Method, *, gradients: bool) -> bool:
    """Whether the loss of every process, and the gradients that they share, are finite. Waits for a GPU.

    Args:
        loss: this process's.
        gradients: look at them, too; not where a loss scaler does.
    """
    found = mean(loss.detach()[None])
    if gradients:
        own = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found = torch.cat([found, torch.nn.utils.get_total_norm(own)[None]])
    return bool(found.isfinite().all())
