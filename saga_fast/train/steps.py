"""The figures of an epoch's steps, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.methods import Method, StepOutput
from saga_fast.runtime.distributed import gather, mean, world_size

CHECK_EVERY = 50
"""Steps between two checks of the losses. A check waits for the GPU, some milliseconds in some seconds."""


class NonFiniteLossError(SagaError):
    """A loss, or the gradient of a finite one, is infinite or not a number.

    Attributes:
        what: ``loss`` or ``gradient``.
        step: its number in the epoch, from 0.
        indices: the images of its batch.
        value: the loss.
    """

    def __init__(self, step: int, indices: list[int], value: float) -> None:
        self.what = "gradient" if math.isfinite(value) else "loss"
        super().__init__(f"the {self.what} of step {step} is not finite: loss {value}")
        self.step, self.indices, self.value = step, indices, value


class Steps:
    """Losses and similarities of an epoch's steps, (steps,) float32 on the device, and the time they took.

    The local figures are replaced by the means over all processes when they are settled, and checked only then.

    Attributes:
        done: finished steps, including those of an interrupted run of this epoch.
        skipped: steps skipped in the epoch.
    """

    def __init__(self, count: int, model: Method, *, partial: Mapping[str, Any] | None) -> None:
        self._weights = list(model.parameters())
        device = self._weights[0].device
        self.losses, self.similarities = torch.zeros(count, device=device), torch.zeros(count, device=device)
        self.done, self.skipped, self.images = 0, 0, 0
        self.seconds, self.waited = 0.0, 0.0
        if partial:
            self.done, self.skipped, self.images = partial["done"], partial["skipped"], partial["images"]
            self.seconds, self.waited = partial["seconds"], partial["waited"]
            self.losses[: self.done], self.similarities[: self.done] = partial["losses"], partial["similarities"]
        self._settled = self.done
        self._indices: list[Tensor] = []  # of the steps not yet settled
        self._skipped: list[int] = []  # the skipped ones among them

    def add(self, output: StepOutput, index: Tensor) -> None:
        """Add a step's figures; every CHECK_EVERY steps they are settled."""
        self.losses[self.done], self.similarities[self.done] = output.loss.detach(), output.positive_similarity
        self._indices.append(index)
        self._count(index)
        if self.done - self._settled == CHECK_EVERY:
            self.settle()

    def skip(self, index: Tensor) -> None:
        """Add a step that was skipped because of its loss."""
        self.losses[self.done] = self.similarities[self.done] = torch.nan
        self.skipped += 1
        self._skipped.append(self.done - self._settled)
        self._indices.append(index)
        self._count(index)

    def _count(self, index: Tensor) -> None:
        self.done += 1
        self.images += world_size() * len(index)

    def settle(self) -> None:
        """Replace the new figures by their means over all processes, and check the losses and the weights.

        A gradient may be infinite although the loss is finite. The next loss shows it, but that may be computed after a
        checkpoint, so the weights are checked too.

        Raises:
            NonFiniteLossError: on every process alike.
        """
        new = slice(self._settled, self.done)
        both = mean(torch.stack([self.losses[new], self.similarities[new]]))
        self.losses[new], self.similarities[new] = both
        wrong = both[0].isfinite().logical_not()
        wrong[self._skipped] = False
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0, 0])
            indices = gather(self._indices[at]).tolist()
            raise NonFiniteLossError(self._settled + at, indices, float(both[0][at]))
        largest = torch.nn.utils.get_total_norm(self._weights, math.inf)
        if self._indices and not bool(mean(largest[None]).isfinite()):
            raise NonFiniteLossError(self.done - 1, gather(self._indices[-1]).tolist(), float(both[0][-1]))
        self._settled = self.done
        self._indices.clear()
        self._skipped.clear()

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint, after the new figures are settled.

        Raises:
            NonFiniteLossError: see :meth:`settle`; such a state must not be saved.
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
