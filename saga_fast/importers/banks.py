"""Memory banks and the ``params`` tensor of NCE losses."""

from __future__ import annotations

import math
from typing import Any

import torch

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import NamedTensor, Tensors


def place_bank(draft: Draft, bank: NamedTensor | None, to: str, dim: int, *, z: float | None = None) -> None:
    """Put a memory bank and, for NCE, its constant Z.

    Args:
        draft: the model.
        bank: (N, dim); None: the rows start fresh.
        to: the bank's module.
        dim: output of the projector.
        z: NCE's constant Z, negative until the first batch sets it; None: the loss is not NCE.
    """
    if bank is None:
        draft.fresh[f"{to}.rows"] = f"{to}: random rows"
    elif bank.tensor.ndim != 2 or bank.tensor.shape[1] != dim:
        raise draft.error(f"{bank.origin} has shape {tuple(bank.tensor.shape)}, expected (images, {dim})")
    else:
        draft.tensors[f"{to}.rows"] = bank
    if z is not None:
        origin = bank.origin if bank else to
        log_z = torch.tensor(math.log(z) if z > 0.0 else math.inf)
        draft.tensors[f"{to}.log_z"] = NamedTensor(log_z, f"{origin} (Z)")


def read_nce_params(
    draft: Draft, tensors: Tensors, constants: int, *, name: str = "params"
) -> tuple[dict[str, Any], list[float]]:
    """Read the tensor [K, temperature, Z ..., momentum] of CMC, lemniscate and VISSL.

    Args:
        draft: the model.
        tensors: the state dict of the loss.
        constants: number of Z constants.
        name: name of the tensor.

    Returns:
        Fields of :class:`~saga_fast.methods.bank.BankConfig`, and the constants Z.
    """
    params = tensors.pop(name)
    if params is None:
        raise draft.error(f"lacks {tensors.origin(name)}: K, temperature, Z and momentum")
    if params.tensor.shape != (3 + constants,):
        raise draft.error(
            f"{params.origin} has shape {tuple(params.tensor.shape)}, expected K, temperature, {constants} Z, momentum"
        )
    negatives, temperature, *z, momentum = params.tensor.double().tolist()
    fields = {
        "negatives": int(negatives),
        "temperature": round(temperature, 6),
        "bank_momentum": round(momentum, 6),
    }
    return fields, z
