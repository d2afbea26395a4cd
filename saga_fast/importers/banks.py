"""Memory banks and the numbers that NCE code keeps beside them."""

from __future__ import annotations

import math
from typing import Any

import torch

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import Piece, Tensors


def place_bank(draft: Draft, bank: Piece | None, to: str, dim: int, *, z: float | None = None) -> None:
    """Rows (N, dim) and, for NCE, Z; fresh where the file has none.

    Args:
        z: NCE's constant Z, negative before the first batch has set it; None: the loss is not NCE.
    """
    if bank is None:
        draft.fresh[f"{to}.rows"] = f"{to}: random rows"
    elif bank.tensor.ndim != 2 or bank.tensor.shape[1] != dim:
        raise draft.fail(f"{bank.origin} has shape {tuple(bank.tensor.shape)}, expected (images, {dim})")
    else:
        draft.put(f"{to}.rows", bank)
    if z is not None:
        origin = bank.origin if bank else to
        draft.put(f"{to}.log_z", Piece(torch.tensor(math.log(z) if z > 0.0 else math.inf), f"{origin} (Z)"))


def nce_numbers(
    draft: Draft, tensors: Tensors, constants: int, *, name: str = "params"
) -> tuple[dict[str, Any], list[float]]:
    """``params`` = [K, temperature, Z ..., momentum] of CMC, lemniscate and VISSL.

    Returns:
        Fields of :class:`~saga_fast.methods.bank.BankConfig`, and the ``constants`` values of Z.
    """
    numbers = tensors.pop(name)
    if numbers is None:
        raise draft.fail(f"lacks {tensors.origin(name)}: K, temperature, Z and momentum")
    if numbers.tensor.shape != (3 + constants,):
        raise draft.fail(
            f"{numbers.origin} has shape {tuple(numbers.tensor.shape)}, expected K, temperature,"
            f" {constants} Z, momentum"
        )
    values = numbers.tensor.double().tolist()
    fields = {"negatives": int(values[0]), "temperature": round(values[1], 6), "bank_momentum": round(values[-1], 6)}
    return fields, values[2:-1]
