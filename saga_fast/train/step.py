"""One training step: views on the device, the method's loss and its gradient, the optimiser's update."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from saga_fast.config import TrainConfig
from saga_fast.evaluate.online_probe import OnlineProbe
from saga_fast.kernels import sample_photometrics
from saga_fast.loaders import Batch
from saga_fast.methods import Method, StepOutput
from saga_fast.models.precision import autocast, normalize_views
from saga_fast.runtime.device import to_device
from saga_fast.runtime.distributed import broadcast_tensors, mean
from saga_fast.train.paste import paste_views


@dataclass(frozen=True, kw_only=True)
class Training:
    """The parts of a run that a training step changes.

    Attributes:
        model: the method.
        network: ``model`` as it is called in training, under DistributedDataParallel in several processes.
        scaler: of the loss, disabled unless the precision is fp16.
        probe: learns from the steps' features, or None.
    """

    config: TrainConfig
    model: Method
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    probe: OnlineProbe | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    def state(self) -> dict[str, Any]:
        """The entries of a checkpoint: equal in all processes, except for what :meth:`share_statistics` equalises."""
        on_gpu = self.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": [torch.cuda.get_rng_state(self.device)] if on_gpu else [],
            **({"online_probe": self.probe.state()} if self.probe else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned, except for the model. A probe that it lacks starts anew."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"][0], self.device)
        if self.probe and "online_probe" in state:
            self.probe.restore(state["online_probe"])

    def share_statistics(self) -> None:
        """Give every process rank 0's running batch-norm statistics, which go into checkpoints.

        Training normalises by the batch and does not use them, so it does not matter how often this is done.
        """
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        broadcast_tensors([buffer for norm in norms for buffer in norm.buffers()])


def views_of_batch(training: Training, batch: Batch, epoch: int) -> list[Tensor]:
    """The augmented views (B, V, 3, S, S) on the device: the main views, then each group of further views.

    A group's views are numbered after those before it: ``photometrics[:, first:]``. With ``attention.views: paste``
    and a box table, view 0 is made of two (:func:`paste_views`).
    """
    config, model = training.config, training.model
    groups = [(batch.views, config.photometric)]
    groups += [(views, group.photometric) for views, group in zip(batch.more, model.more_views, strict=True)]
    result, first = [], 0
    for views, recipe in groups:
        last = first + views.shape[1]
        photometrics = sample_photometrics(recipe, config.seed, epoch, batch.index, last)[:, first:]
        result.append(
            normalize_views(
                views,
                model.encoder,
                training.device,
                photometrics=photometrics,
                channels_last=config.channels_last,
                precision=config.precision,
            )
        )
        first = last
    attention = config.attention
    if attention and attention.views == "paste" and result[0].shape[1] > model.num_views:  # there is a box table
        result[0] = paste_views(result[0], batch.index, seed=config.seed, epoch=epoch, share=attention.share)
    return result


def backward_step(training: Training, batch: Batch, epoch: int) -> StepOutput:
    """The loss of a batch, with its gradient in the parameters; batch norm and key encoders are updated."""
    main, *more = views_of_batch(training, batch, epoch)
    recording = training.probe.recording(batch.label) if training.probe else nullcontext()
    with recording, autocast(training.device, training.config.precision):
        output: StepOutput = training.network(main, to_device(batch.index, training.device), *more)
    training.optimizer.zero_grad(set_to_none=True)
    training.scaler.scale(output.loss).backward()  # type: ignore[no-untyped-call]
    return output


def update_step(training: Training) -> None:
    """Update the parameters by their gradient, then the method's queues and banks, and the online probe."""
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.model.after_step()
    if training.probe:
        training.probe.step()


def is_finite(loss: Tensor, model: Method, *, gradients: bool) -> bool:
    """Whether the loss of every process, and the gradients that they share, are finite. Waits for a GPU.

    Args:
        loss: the local loss.
        gradients: check them, too; not needed where a loss scaler does.
    """
    values = mean(loss.detach()[None])
    if gradients:
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        values = torch.cat([values, torch.nn.utils.get_total_norm(grads)[None]])
    return bool(values.isfinite().all())


class Undo:
    """A copy of what a forward pass in train mode changes: batch-norm statistics and key encoders."""

    def __init__(self, model: Method) -> None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._changing = [buffer for norm in norms for buffer in norm.buffers()]
        self._changing += [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self._copies = [torch.empty_like(tensor) for tensor in self._changing]

    @torch.no_grad()
    def save(self) -> None:
        """Copy the state, before the forward pass."""
        for copy, tensor in zip(self._copies, self._changing, strict=True):
            copy.copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the copied state, after a step that is skipped."""
        for copy, tensor in zip(self._copies, self._changing, strict=True):
            tensor.copy_(copy)
