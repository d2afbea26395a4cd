"""Batch norm over the whole batch of a run, all processes' parts together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from saga_fast.distributed import gather, world_size


def is_own_batchnorm(module: nn.Module) -> bool:
    """Whether a module normalises by the statistics of this process's part of the batch."""
    return isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | _Synchronised)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Let the batch norms of a model's parts go over all processes' batches; names and parameters stay as they are.

    A GPU takes torch's ``SyncBatchNorm``, which refuses the CPU, so there the same is done in a few lines.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if is_own_batchnorm(module):
            module.__class__ = _synchronised(type(module))


def _synchronised(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})


class _Synchronised(nn.Module):
    """Put before a batch norm's class."""

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        if not self.training or world_size() == 1:
            plain: Tensor = super().forward(x)
            return plain
        assert own.affine
        assert own.track_running_stats
        assert own.momentum is not None
        own.num_batches_tracked.add_(1)
        y: Tensor = _SyncBatchNorm.apply(
            x, own.weight, own.bias, own.running_mean, own.running_var, own.eps, own.momentum
        )
        if isinstance(self, BatchNormAct2d):
            y = own.act(own.drop(y))
        return y


class _SyncBatchNorm(torch.autograd.Function):
    """y = weight (x - mean) / sqrt(var + eps) + bias, with the mean and variance of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
    ) -> Tensor:
        dims = [dim for dim in range(x.ndim) if dim != 1]
        own_var, own_mean = torch.var_mean(x.float(), dims, correction=0)
        count = x.numel() // x.shape[1]
        every = gather(torch.stack([own_mean, own_var])[None])  # (world_size, 2, C), all of as many values
        mean = every[:, 0].mean(0)
        var = (every[:, 1] + (every[:, 0] - mean).square()).mean(0)
        total = count * world_size()
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (total / (total - 1)), momentum)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        ctx.dims, ctx.total = dims, total
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.ndim - 2)]
        normal = (x.float() - mean.view(shape)) * inverse.view(shape)
        gradient = gradient.float()
        sums = torch.stack([gradient.sum(ctx.dims), (gradient * normal).sum(ctx.dims)])
        of_bias, of_weight = sums.clone()
        dist.all_reduce(sums)
        first, second = (sums / ctx.total).view(2, *shape)
        of_x = (gradient - first - normal * second) * (weight * inverse).view(shape)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None
