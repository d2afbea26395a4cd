"""The online probe: a linear classifier that learns while the network is trained, from the features of its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.evaluate.features import unit
from saga_fast.methods import Method
from saga_fast.runtime.device import to_device
from saga_fast.runtime.distributed import mean, world_size

LR = 1.0
"""The best of 0.1 to 30 on the training crops of the demo's SimCLR and MoCo, in one trial with one seed."""
MOMENTUM = 0.9


class OnlineProbe:
    """A linear classifier on the pooled features that the training steps compute anyway.

    As in SimCLR's code, lightly and solo-learn the features are detached: the network does not learn from labels. Ours
    are scaled to length 1 as kNN's are (:func:`saga_fast.evaluate.features.unit`), so that the classifier can be tested
    on those and one learning rate serves networks whose features differ in length. It starts at zero (its loss is
    convex), so it draws no random number.

    Under torchrun each process passes its part of the batch, and gradients and accuracies are averaged.
    """

    def __init__(self, model: Method, classes: int) -> None:
        """The probe of a model on its device, for labels in [0, classes)."""
        self._projectors, self._parts = model.projectors, model.parts
        self._device = next(model.parameters()).device
        self._classifier: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, model.encoder.dim, classes, device=self._device
        )
        for parameter in self._classifier.parameters():
            nn.init.zeros_(parameter)
        self._optimizer = torch.optim.SGD(self._classifier.parameters(), lr=LR, momentum=MOMENTUM)
        self._recorded: list[tuple[Tensor, Tensor]] = []
        self._top1, self._steps = torch.zeros((), dtype=torch.float64, device=self._device), 0

    @contextmanager
    def recording(self, labels: Tensor) -> Iterator[None]:
        """Within the block, keep the features of the model's forward passes: the input of its projectors.

        Args:
            labels: (B,) int64 on the CPU. A pass has the features of all views of an image in successive rows.
        """
        passes: list[list[Tensor]] = [[] for _ in self._projectors]

        def keep(features: list[Tensor]) -> Any:
            return lambda _, inputs: features.append(inputs[0].detach())

        hooks = [
            projector.register_forward_pre_hook(keep(features))
            for projector, features in zip(self._projectors, passes, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        # A pass in parts calls the projector for each; their second passes, in the backward pass, are not recorded.
        parts = self._parts
        whole = [[torch.cat(each[at : at + parts]) for at in range(0, len(each), parts)] for each in passes]
        for branches in zip(*whole, strict=True):
            views = len(branches[0]) // len(labels)
            targets = to_device(labels.repeat_interleave(views), self._device)
            self._recorded.append((unit([h.float() for h in branches]), targets))

    @property
    def has_learned(self) -> bool:
        """Whether it has taken a step."""
        return bool(self._optimizer.state)

    def step(self) -> None:
        """Train the classifier by one step on what was recorded since the last one."""
        features, labels = (torch.cat(parts) for parts in zip(*self._recorded, strict=True))
        self._recorded.clear()
        logits = self._classifier(features)
        self._optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        top1 = (logits.detach().argmax(1) == labels).float().mean()
        _average([top1, *(p.grad for p in self._classifier.parameters() if p.grad is not None)])
        self._optimizer.step()
        self._top1 += top1
        self._steps += 1

    def drop(self) -> None:
        """Drop what was recorded: the step is skipped."""
        self._recorded.clear()

    def finish_epoch(self) -> float | None:
        """Top-1 on the epoch's training crops, each batch before it was learned from; None without a step."""
        top1 = float(self._top1) / self._steps if self._steps else None
        self._top1.zero_()
        self._steps = 0
        return top1

    @torch.no_grad()
    def top1(self, features: Tensor, labels: Tensor) -> float:
        """Top-1 on images, from their features (M, dim) as kNN compares them and labels (M,)."""
        logits = self._classifier(features.to(self._device))
        return float((logits.argmax(1) == labels.to(self._device)).double().mean())

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint, equal in all processes."""
        return {
            "classifier": self._classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "top1": self._top1,
            "steps": self._steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._top1.copy_(state["top1"])
        self._steps = state["steps"]


def _average(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over all processes, in one collective."""
    if world_size() == 1:
        return
    averaged = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = torch.split(averaged, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
