"""Synchronised batch norm, over the batch of all processes, on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from saga_fast.runtime.distributed import gather, world_size


def is_local_batchnorm(module: nn.Module) -> bool:
    """Whether a module is a batch norm that normalises by the local part of the batch only."""
    return isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | _Synchronised)


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> None:
    """Make the batch norms of a model cover the batch of all processes; names and parameters do not change.

    On a GPU this is torch's ``SyncBatchNorm``, which does not support the CPU; there :class:`_Synchronised` is used.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for module in model.modules():
        if is_local_batchnorm(module):
            module.__class__ = _synchronised(type(module))


def _synchronised(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})


class _Synchronised(nn.Module):
    """Mixed into a batch norm's class, before it."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self
        if not self.training or world_size() == 1:
            plain: Tensor = super().forward(x)
            return plain
        assert norm.affine
        assert norm.track_running_stats
        assert norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        y: Tensor = _SyncBatchNorm.apply(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum
        )
        if isinstance(self, BatchNormAct2d):
            y = norm.act(norm.drop(y))
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
        local_var, local_mean = torch.var_mean(x.float(), dims, correction=0)
        count = x.numel() // x.shape[1]
        gathered = gather(
            torch.stack([local_mean, local_var])[None]
        )  # (world_size, 2, C), each over equally many values
        mean = gathered[:, 0].mean(0)
        var = (gathered[:, 1] + (gathered[:, 0] - mean).square()).mean(0)
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
